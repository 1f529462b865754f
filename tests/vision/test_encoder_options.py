"""Layer scale against timm, AttnScale against its definition, and both through checkpoints and commands."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bamboo.analysis.captures import State, capture
from bamboo.analysis.model_sources import fresh_copy, open_model
from bamboo.analysis.profiling import profile
from bamboo.checkpoints import export, load_classifier, load_encoder, load_mae
from bamboo.cli import main
from bamboo.compiling import compile_in_training
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.optimizers import layer_decay_groups
from bamboo.shapes import Patches, Shape
from bamboo.vision.encoder import build_encoder, encode, options_of
from bamboo.vision.heads import attach_head
from bamboo.vision.mae import build_mae
from bamboo.vision.pretraining import MAEPretraining
from tests.finetune.runs import last, pretrain, run

SHAPE, PATCHES = Shape(2, 32, 2), Patches.of(16, 4)
SIZES = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4}
BOTH = {"layer_scale": 0.5, "attention": "attn_scale"}
LAMB = torch.tensor([0.7, -0.4])


def drawn(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return build_encoder(SHAPE, PATCHES, **options).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def changed(model, seed: int = 2):
    """With no option left where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("lamb", "gamma")):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def test_layer_scale_is_timms() -> None:
    ours = drawn(layer_scale=0.1)
    timms = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0, init_values=0.1
    ).eval()
    assert all(torch.equal(block.ls2.gamma, torch.full((32,), 0.1)) for block in ours.blocks)
    changed(ours)
    timms.load_state_dict(ours.state_dict())
    assert torch.equal(encode(ours, images()), timms.forward_features(images()))


def test_attn_scale_is_its_definition() -> None:
    attention = drawn(attention="attn_scale").blocks[0].attn.double()
    attention.lamb.data.copy_(LAMB)
    tokens = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1), dtype=torch.double, requires_grad=True)
    query, key, value = attention.qkv(tokens).reshape(3, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)
    maps = (query @ key.mT / 4).softmax(-1)
    uniform = torch.full((7, 7), 1 / 7, dtype=torch.double)
    maps = uniform + (1 + attention.lamb[:, None, None]) * (maps - uniform)
    expected = attention.proj((maps @ value).transpose(1, 2).reshape(3, 7, 32))
    found, weights = attention(tokens), [tokens, *attention.parameters()]
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), weights, retain_graph=True) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_where_lambda_is_zero_attention_is_plain() -> None:
    plain, scaled = drawn(), drawn(attention="attn_scale")
    for name, weight in plain.state_dict().items():
        assert torch.equal(scaled.state_dict()[name], weight)
    assert torch.equal(encode(scaled, images()), encode(plain, images()))


def test_attention_masks_and_layer_scales_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="takes no attention mask"):
        drawn(attention="attn_scale")(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(InputError, match="layer_scale must be positive"):
        drawn(layer_scale=0.0)


def test_maps_that_are_seen_are_those_that_mix_the_tokens() -> None:
    encoder, seen = changed(drawn(attention="attn_scale")), list[State]()
    with torch.no_grad(), capture(encoder, seen.append, attention=True):
        encoder(images())
        for state, block in zip((s for s in seen if s.position == "maps"), encoder.blocks, strict=True):
            value = block.attn.qkv(state.before)[..., 64:].unflatten(-1, (2, 16)).transpose(1, 2)
            mixed = (state.attention.probabilities @ value).transpose(1, 2).flatten(2)
            torch.testing.assert_close(block.attn.proj(mixed), state.tokens)


def test_measures_that_speak_of_softmax_alone_are_undefined_under_attn_scale() -> None:
    encoder = drawn(attention="attn_scale")
    encoder.blocks[0].attn.lamb.data.fill_(20)  # with numbers below zero
    found = profile(encoder, [images()], measures=["attention", "bound"])
    values = {key.measure: value for key, value in zip(found.keys, found.values[0], strict=True) if key.layer == 1}
    assert {name for name, value in values.items() if value != value} == {
        "attention_entropy",
        "attention_bound",
        "residual_bound",
    }


def test_checkpointed_and_compiled_blocks_compute_the_same(graphs) -> None:
    mae, noise = changed(build_mae(**SIZES, **BOTH, decoder_shape=Shape(1, 16, 2))).train(), torch.rand(3, 16)
    found = []
    compiled = partial(compile_in_training, mae.encoder.blocks, backend="eager")
    for change in (lambda: None, mae.encoder.set_grad_checkpointing, compiled):
        change()
        mae.zero_grad()
        mae(images(), noise).loss.backward()
        found.append({name: weight.grad for name, weight in mae.named_parameters() if weight.grad is not None})
    assert {"encoder.blocks.1.attn.lamb", "encoder.blocks.1.ls2.gamma"} < found[0].keys()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert graphs() == (1, 0)  # one for all blocks, and no break


def test_scales_have_the_rate_of_their_block_and_no_weight_decay() -> None:
    encoder = attach_head(drawn(**BOTH), 5).requires_grad_(True)
    kinds = {
        "with layer decay": (layer_decay_groups(encoder, 0.65, 0.05), encoder),
        "without": ((module := MAEPretraining(**SIZES, **BOTH)).parameter_groups(), module.mae.encoder),
    }
    for groups, model in kinds.values():
        found = {parameter: group for group in groups for parameter in group["params"]}
        for block in model.blocks:
            for scale in (block.attn.lamb, block.ls1.gamma, block.ls2.gamma):
                assert found[scale]["weight_decay"] == 0
                assert found[scale].get("lr_scale") == found[block.norm1.weight].get("lr_scale")


def checkpoint(path: Path, module) -> Path:
    content = {"state_dict": changed(module).state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.0.0", "classes": ["a", "b", "c"]}, path)
    return path


def test_options_travel_with_a_checkpoint(tmp_path: Path) -> None:
    module = MAEPretraining(**SIZES, **BOTH, init="depth", decoder_shape={"depth": 1, "width": 16, "heads": 2})
    source = checkpoint(tmp_path / "mae.ckpt", module)
    expected = encode(module.mae.encoder.eval(), images())
    for encoder in (load_encoder(source)[0], load_mae(source).encoder, Classifier(3, source, image_size=16).model):
        assert options_of(encoder) == {"init": "depth", "kv_compression": None, **BOTH}
        encoder.norm = module.mae.encoder.norm  # which the classifier has after pooling
        assert torch.equal(encode(encoder.eval(), images()), expected)
    fresh = fresh_copy(open_model(str(source))).model
    assert all(not block.attn.lamb.any() and (block.ls1.gamma == 0.5).all() for block in fresh.blocks)
    for name, value, said in (("layer_scale", 0.1, "0.1"), ("attention", "attn_scale", '"attn_scale"')):
        plain = checkpoint(tmp_path / "plain.ckpt", MAEPretraining(**SIZES))
        with pytest.raises(InputError, match=rf'plain.ckpt has {name} (null|"plain"), and .*says {said}'):
            Classifier(3, plain, image_size=16, **{name: value})


def test_a_classifier_is_loaded_with_the_options_of_the_encoder_it_began_with(tmp_path: Path) -> None:
    mae = checkpoint(tmp_path / "mae.ckpt", MAEPretraining(**SIZES, **BOTH))
    module = Classifier(3, mae, image_size=16, head_init_std=1.0)
    source = checkpoint(tmp_path / "classifier.ckpt", module)
    expected = module.eval()(images())
    assert torch.equal(Classifier.load_from_checkpoint(source, weights_only=True).eval()(images()), expected)
    torch.testing.assert_close(load_classifier(source)[0](images()), expected)
    other = Classifier(3, "scratch", **SIZES, layer_scale=0.5)
    with pytest.raises(InputError, match="the checkpoint has attention attn_scale and the configuration plain"):
        other.on_load_checkpoint(torch.load(source, weights_only=True))


@pytest.mark.parametrize("classifies", [False, True])
def test_layer_scale_leaves_for_timm_alone(tmp_path: Path, classifies: bool) -> None:
    module = (
        Classifier(3, "scratch", **SIZES, layer_scale=0.5, pool="token", head_init_std=1.0)
        if classifies
        else MAEPretraining(**SIZES, layer_scale=0.5)
    )
    source = checkpoint(tmp_path / "last.ckpt", module)
    for format in ("timm", "hf") if classifies else ("timm",):
        export(source, format, tmp_path / format)
        model = timm.create_model(f"local-dir:{tmp_path / format}", pretrained=True).eval()
        ours = module.model if classifies else module.mae.encoder
        assert torch.equal(model(images()), ours.eval()(images()))
        assert load_encoder(tmp_path / format)[0].blocks[0].ls1.init_values == 0.5
    for format in ("reference",) if classifies else ("hf", "reference"):
        with pytest.raises(InputError, match="is a classifier" if classifies else "has no layer scale"):
            export(source, format, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("format", ["timm", "hf", "reference"])
def test_attn_scale_leaves_for_no_format(tmp_path: Path, format: str) -> None:
    source = checkpoint(tmp_path / "last.ckpt", MAEPretraining(**SIZES, attention="attn_scale"))
    with pytest.raises(InputError, match="has attention attn_scale, which no format of others knows"):
        export(source, format, tmp_path / "out")  # type: ignore[arg-type]


def test_commands_train_and_look_at_a_model_with_both(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.layer_scale", "0.5", "--model.init_args.attention", "attn_scale"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    assert pretrain(*options, *short) == 0
    mae = last(tmp_path, "quickstart")
    assert all(block.attn.lamb.any() for block in load_mae(mae).encoder.blocks)
    assert run("fit", *short, "--model.init_args.encoder", str(mae), config="digits") == 0
    classifier = last(tmp_path, "digits")
    assert options_of(load_classifier(classifier)[0])["attention"] == "attn_scale"
    words = ["--samples", "8", "--pictures", "0", "--measures", "token_similarity", "attention"]
    assert main(["profile", str(classifier), "--data", "digits", "--out", "profile", *words]) == 0
    assert main(["knn", str(mae), "--data", "digits"]) == 0
    Image.new("RGB", (20, 20)).save("photo.png")
    assert main(["reconstruct", str(mae), "photo.png", "--out", "pictures"]) == 0
