"""Pretraining that starts from weights: of every kind, deeper by stacking, resumed, and what is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from bamboo.checkpoints import export, load_encoder, load_mae
from bamboo.checkpoints.starting import start
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.vision.mae import build_mae
from bamboo.vision.pretraining import MAEPretraining
from tests.interruption import Interruption
from tests.runs import TINY, fit, last, load, same

SHAPE, DECODER = {"depth": 2, "width": 128, "heads": 2}, {"depth": 1, "width": 64, "heads": 2}
SIZES: dict[str, Any] = {"shape": SHAPE, "image_size": 32, "patch_size": 8, "decoder_shape": DECODER}
CROSS = {**SIZES, "decoder": "cross", "mix_layers": True}
SCALED = {**SIZES, "layer_scale": 0.1, "attention": "attn_scale"}


@torch.no_grad()
def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.endswith(("pos_embed", "position_embeddings")):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def checkpoint(path: Path, **arguments: Any) -> Path:
    """A checkpoint of `MAEPretraining`, as Lightning writes it."""
    module = randomised(MAEPretraining(**{**SIZES, **arguments}))
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    return path


def vit_mae(folder: Path, **options: Any) -> ViTMAEForPreTraining:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    decoder = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256}
    decoder = {f"decoder_{key}": value for key, value in decoder.items()}
    model = randomised(ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=8, **sizes, **decoder, **options)))
    model.save_pretrained(folder)
    return model


def timm_file(path: Path, **options: Any) -> nn.Module:
    """A file of weights of a supervised ViT, whose positions are learned."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    model = randomised(timm.create_model("vit_base_patch16_224", num_classes=5, **sizes, **options))
    torch.save(model.state_dict(), path)
    return model


def started(source: Path | str, **options: Any) -> MAEPretraining:
    """A module at the beginning of a run that starts from weights."""
    torch.manual_seed(1)
    module = MAEPretraining(**{**SIZES, "init_from": str(source), **options})
    module._trainer = SimpleNamespace(ckpt_path=None, is_global_zero=True, datamodule=None)
    module.setup("fit")
    return module


def images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def noise(count: int = 16) -> torch.Tensor:
    return torch.rand(2, count, generator=torch.Generator().manual_seed(2))


def refused(source: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        started(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("options", [SIZES, CROSS, SCALED, {**SIZES, "in_chans": 1, "image_size": (16, 24)}])
@pytest.mark.parametrize("format", ["checkpoint", "reference"])
def test_a_whole_autoencoder_goes_on_with_the_loss_that_it_had(tmp_path, capsys, options, format) -> None:
    path = checkpoint(tmp_path / "last.ckpt", **options)
    source = load_mae(path)
    if format == "reference":
        if options is not SIZES:
            return
        (path,) = export(path, "reference", tmp_path)
    module, count = started(path, **options), source.encoder.patch_embed.num_patches
    x = torch.randn(2, options.get("in_chans", 3), *source.encoder.patch_embed.img_size)
    assert module.training
    assert torch.equal(module.mae(x, noise(count)).loss, source(x, noise(count)).loss)
    assert same(module.mae.state_dict(), source.state_dict())
    assert not module.mae.encoder.pos_embed.requires_grad
    report = capsys.readouterr().out
    assert f"{len(source.state_dict())} tensors loaded, 0 not used" in report
    assert "start fresh" not in report


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
@pytest.mark.parametrize("more", [{}, {"qkv_bias": False}])
def test_a_hugging_face_vitmae_goes_on_with_the_loss_that_it_had(tmp_path, capsys, eps, more) -> None:
    model = vit_mae(tmp_path, layer_norm_eps=eps, norm_pix_loss=True, **more)
    module, x = started(f"hf:{tmp_path}"), images()
    with torch.no_grad():
        torch.testing.assert_close(module.mae(x, noise()).loss, model(x, noise=noise()).loss, rtol=1e-5, atol=0)
    assert module.hparams["layer_norm_eps"] == eps
    output = capsys.readouterr().out
    assert "start fresh" not in output
    assert ("had no bias: those here start at zero" in output) == bool(more)
    assert module.mae.encoder.blocks[0].attn.qkv.bias.requires_grad


def test_a_target_that_differs_from_that_of_the_source_is_said(tmp_path, capsys) -> None:
    vit_mae(tmp_path, norm_pix_loss=False)
    started(tmp_path)
    assert "the decoder learned to predict by norm_pix False, which here is True" in capsys.readouterr().out


def test_a_supervised_vit_keeps_its_positions_learned_and_its_pixels_and_gets_a_fresh_decoder(tmp_path, capsys) -> None:
    model = timm_file(tmp_path / "vit.pth")
    module = started(tmp_path / "vit.pth")
    assert torch.equal(module.mae.encoder.forward_features(images()), model.forward_features(images()))
    assert module.mae.encoder.pos_embed.requires_grad
    report = capsys.readouterr().out
    assert f"{len(module.mae.decoder.state_dict())} start fresh: decoder.mask_token, decoder.pos_embed" in report
    assert "positions go on being learned" in report
    assert "2 not used, the classifier head or pooling, left out: head.weight, head.bias" in report
    torch.manual_seed(1)
    assert same(module.mae.decoder.state_dict(), build_mae(**SIZES).decoder.state_dict())
    assert not started(tmp_path / "vit.pth", learned_positions=False).mae.encoder.pos_embed.requires_grad


def test_timms_names_bring_their_pixels_and_what_no_plain_vit_has_is_refused(tmp_path, capsys) -> None:
    for name, problem in (
        ("vit_tiny_patch16_224", ""),
        ("vit_little_patch16_reg1_gap_256", "is no plain ViT with a class token: it has reg_token (1, 1, 320)"),
    ):
        model = randomised(timm.create_model(name, num_classes=0))
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        block, size = model.blocks[0], model.patch_embed.img_size
        shape = Shape.of(len(model.blocks), model.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features)
        options = {"shape": shape, "image_size": size, "patch_size": 16}
        source = f"timm:{name}@{tmp_path / 'weights.pth'}"
        if problem:
            options["layer_scale"] = getattr(block.ls1, "init_values", None)
            assert problem in refused(source, **options)
            continue
        module = started(source, **options)
        assert module.hparams["mean"] == list(timm.get_pretrained_cfg(name).mean) == [0.5, 0.5, 0.5]
        assert "mean [0.5, 0.5, 0.5]" in capsys.readouterr().out
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(module.mae.encoder.forward_features(x), model.forward_features(x))


def test_parts_that_leave_no_trace_in_the_weights_are_seen(tmp_path) -> None:
    timm_file(tmp_path / "vit.pth")
    tensors = {key: tensor for key, tensor in torch.load(tmp_path / "vit.pth").items() if "head" not in key}
    config = '{"architecture": "vit_base_patch16_224", "model_args": {"img_size": 32, "patch_size": 8, "depth": 2, '
    config += '"embed_dim": 128, "num_heads": 2, "act_layer": "quick_gelu"}}'
    (tmp_path / "config.json").write_text(config)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert "no plain ViT with a class token: it has (act): QuickGELU()" in refused(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"act_layer": "quick_gelu"', '"class_token": true'))
    assert started(tmp_path).mae.encoder.pos_embed.requires_grad


def test_a_hugging_face_vit_gives_its_encoder(tmp_path) -> None:
    options = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = randomised(ViTModel(ViTConfig(image_size=32, patch_size=8, qkv_bias=False, **options)))
    model.save_pretrained(tmp_path)
    module = started(tmp_path)
    with torch.no_grad():
        ours, theirs = module.mae.encoder.forward_features(images()), model(images()).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert module.hparams["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize("source", ["checkpoint", "timm"])
def test_other_sizes_and_channels_are_adapted_as_in_fine_tuning(tmp_path, capsys, source) -> None:
    path = tmp_path / "weights.pth"
    timm_file(path) if source == "timm" else checkpoint(path)
    module = started(path, image_size=(24, 40), in_chans=1)
    encoder, _ = load_encoder(path, (24, 40), 1)
    x = torch.randn(2, 1, 24, 40)
    assert torch.equal(module.mae.encoder.forward_features(x), encoder.forward_features(x))
    assert module.mae.encoder.pos_embed.requires_grad == (source == "timm")
    report = capsys.readouterr().out
    assert "positions resampled from 4x4 to 3x5 patches" in report
    assert "patch projection adapted from 3 to 1 channels" in report
    assert "mean [0.5]" in report  # that of three channels does not fit
    if source == "checkpoint":
        assert "the decoder starts fresh: decoder.pred.weight is (192, 64) in the source, and (64, 64) here" in report


def test_a_decoder_reads_another_grid_by_the_table_of_that_grid(tmp_path, capsys) -> None:
    path = checkpoint(tmp_path / "last.ckpt")
    module, source = started(path, image_size=48), load_mae(path)
    assert torch.equal(module.mae.decoder.pos_embed, build_mae(**{**SIZES, "image_size": 48}).decoder.pos_embed)
    assert torch.equal(module.mae.decoder.pred.weight, source.decoder.pred.weight)
    assert "start fresh" not in capsys.readouterr().out


def test_another_decoder_starts_fresh_and_is_said(tmp_path, capsys) -> None:
    path = checkpoint(tmp_path / "last.ckpt")
    module = started(path, decoder="cross")
    report = capsys.readouterr().out
    assert "that of the source is 1x64 with 2 heads (self), and this one 1x64 with 2 heads (cross)" in report
    assert "not used, its decoder: mae.decoder.mask_token" in report
    torch.manual_seed(1)
    assert same(module.mae.decoder.state_dict(), build_mae(**SIZES, decoder="cross").decoder.state_dict())


def blocks(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [block.state_dict() for block in model.encoder.blocks]


@pytest.mark.parametrize("options", [SIZES, SCALED, CROSS])
@pytest.mark.parametrize("depth", [4, 6])
def test_repeat_is_the_sequence_of_blocks_again(tmp_path, options, depth) -> None:
    path = checkpoint(tmp_path / "last.ckpt", **options)
    module, source = started(path, **options | {"shape": SHAPE | {"depth": depth}}, stack="repeat"), load_mae(path)
    assert same(blocks(module.mae), blocks(source) * (depth // 2))


@pytest.mark.parametrize("options", [SIZES, SCALED])
@pytest.mark.parametrize("depth", [4, 6])
def test_identity_keeps_the_function_and_its_new_blocks_learn(tmp_path, capsys, options, depth) -> None:
    path = checkpoint(tmp_path / "last.ckpt", **options)
    module, source = started(path, **options | {"shape": SHAPE | {"depth": depth}}, stack="identity"), load_mae(path)
    assert f"2 blocks stacked to {depth} (identity)" in capsys.readouterr().out
    loss = module.mae(images(), noise()).loss
    assert torch.equal(loss, source(images(), noise()).loss)
    old = module.mae.encoder.blocks[:: depth // 2]
    assert same([block.state_dict() for block in old], blocks(source))
    copy = module.mae.encoder.blocks[1]
    ends = ("ls1.gamma", "ls2.gamma") if options is SCALED else ("attn.proj.weight", "mlp.fc2.weight")
    zero = {name for name, parameter in copy.named_parameters() if not parameter.any()}
    assert zero == {name for end in ends for name in (end, end.replace("weight", "bias"))}
    others = {name: tensor for name, tensor in copy.state_dict().items() if name not in zero}
    assert same(others, {name: blocks(source)[0][name] for name in others})

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    learning = []
    for _ in range(2):
        optimizer.zero_grad()
        module.mae(images(), noise()).loss.backward()
        learning.append({name for name, parameter in copy.named_parameters() if parameter.grad.any()})
        optimizer.step()
    assert learning[0] == zero
    assert learning[1] == {name for name, _ in copy.named_parameters()}


def test_a_model_of_timm_is_stacked_too(tmp_path) -> None:
    model = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    mae = build_mae(replace(Shape(12, 192, 3), depth=24), decoder_shape=Shape(1, 32, 1))
    start(mae, f"timm:vit_tiny_patch16_224@{tmp_path / 'weights.pth'}", "identity")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(mae.encoder.eval().forward_features(x), model.forward_features(x))


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path) -> None:
    path = checkpoint(tmp_path / "last.ckpt")
    deep = refused(path, shape=SHAPE | {"depth": 4})
    assert "is 2x128 with 2 heads, and model.init_args.shape says 4x128 with 2 heads: give" in deep
    assert """--model.init_args.shape '{"depth": 2, "width": 128, "heads": 2}', or --model.init_args.stack""" in deep
    assert "stack" not in refused(path, shape=SHAPE | {"depth": 3})
    assert "stack" not in refused(path, shape={"depth": 4, "width": 64, "heads": 2})
    assert "to a depth of 4, 6 and so on, and" in refused(path, shape=SHAPE | {"depth": 3}, stack="repeat")
    assert "model.init_args.shape asks for 2" in refused(path, stack="repeat")
    assert "unknown stack 'twice'" in refused(path, shape=SHAPE | {"depth": 4}, stack="twice")
    assert "has patches of 8 pixels, and model.init_args.patch_size says 4" in refused(path, patch_size=4)
    assert "has layer_scale null, and model.init_args.layer_scale says 0.1" in refused(path, layer_scale=0.1)
    assert 'has attention "plain", and model.init_args.attention says "attn_scale"' in refused(
        path, attention="attn_scale"
    )
    assert "says [0.5, 0.5, 0.5]: leave it out" in refused(path, mean=(0.5, 0.5, 0.5))
    assert "has layer_norm_eps 1e-06, and" in refused(path, layer_norm_eps=0.01)
    assert "is missing: give the path of a checkpoint file" in refused(tmp_path / "nothing.ckpt")
    scaled = checkpoint(tmp_path / "scaled.ckpt", layer_scale=0.1)
    assert "has layer_scale 0.1, and model.init_args.layer_scale says null" in refused(scaled)
    with pytest.raises(InputError, match="stack repeats the blocks of an encoder: give that as"):
        MAEPretraining(**SIZES, stack="repeat")


RUN = [
    *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", "--checkpoint.every_n_train_steps", "1"),
    *("--data.init_args.fraction", "0.2", "--data.init_args.batch_size", "40"),  # 7 steps in an epoch
]


@pytest.fixture
def odd(tmp_path):
    """A source of which a run must keep more than the weights: epsilon, learned positions, other pixels."""
    options = {"shape": {"depth": 2, "width": 32, "heads": 2}, "decoder_shape": {"depth": 1, "width": 32, "heads": 2}}
    module = randomised(MAEPretraining(**options, image_size=32, patch_size=4, in_chans=1, layer_norm_eps=0.01))
    with torch.no_grad():
        module.mae.encoder.pos_embed.add_(torch.randn_like(module.mae.encoder.pos_embed))
    said = {**module.hparams, "mean": [0.3], "std": [0.4]}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": said}, tmp_path / "odd.ckpt")
    return tmp_path / "odd.ckpt"


def test_a_resumed_run_equals_the_uninterrupted_one_without_the_weights_that_it_started_from(
    odd, tmp_path, monkeypatch
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    command = [*RUN, "--model.init_args.init_from", str(odd)]
    monkeypatch.chdir(tmp_path / "whole")
    assert fit(*command) == 0
    monkeypatch.chdir(tmp_path / "parts")
    stop = ["--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=3"]
    with pytest.raises(Interruption):
        fit(*command, *stop)
    source = load_mae(odd)
    odd.unlink()
    assert fit(*command, "--ckpt_path", "last") == 0
    left, right = (load(last(tmp_path / name)) for name in ("whole", "parts"))
    assert left["global_step"] == 14
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])
    assert left["hyper_parameters"] == right["hyper_parameters"]
    said = {"mean": [0.3], "std": [0.4], "layer_norm_eps": 0.01, "learned_positions": True, "init_from": None}
    assert said.items() <= left["hyper_parameters"].items()
    assert not torch.equal(left["state_dict"]["mae.encoder.pos_embed"], source.encoder.pos_embed)

    path = last(tmp_path / "whole")
    encoder, _ = load_encoder(path)
    assert encoder.pos_embed.requires_grad
    assert encoder.norm.eps == load_mae(path).decoder.norm.eps == 0.01
    assert encoder.pretrained_cfg["mean"] == [0.3]
    assert export(path, "hf", tmp_path / "hf")
    assert main(["validate", "--config", "pretrain/quickstart", *TINY, *command[-2:], "--ckpt_path", str(path)]) == 0
    again = MAEPretraining.load_from_checkpoint(path)
    assert again.has_weights
    assert again.mae.encoder.norm.eps == 0.01


def test_evaluating_weights_without_a_checkpoint_of_a_run(odd, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--model.init_args.init_from", str(odd), "--trainer.logger", "false"]
    assert main(["validate", "--config", "pretrain/quickstart", *TINY, *command]) == 0
    assert "odd.ckpt (a Bamboo checkpoint)" in capsys.readouterr().out


def test_a_fixed_table_that_was_resampled_stays_fixed_when_a_run_is_resumed(odd, tmp_path, monkeypatch) -> None:
    content = load(odd)
    content["state_dict"]["mae.encoder.pos_embed"] = build_mae(
        **{key: content["hyper_parameters"][key] for key in ("shape", "image_size", "patch_size", "in_chans")}
    ).encoder.pos_embed.detach()
    torch.save(content, tmp_path / "fixed.ckpt")
    monkeypatch.chdir(tmp_path)
    sizes = ["--model.init_args.image_size", "16", "--trainer.callbacks", "[]"]
    command = [*RUN, *sizes, "--model.init_args.init_from", str(tmp_path / "fixed.ckpt")]
    assert fit(*command, "--trainer.max_steps", "2") == 0
    saved = load(last(tmp_path))
    assert saved["hyper_parameters"]["learned_positions"] is False
    assert not load_encoder(last(tmp_path))[0].pos_embed.requires_grad
    assert fit(*command, "--trainer.max_steps", "4", "--ckpt_path", "last") == 0
    assert same(
        load(last(tmp_path))["state_dict"]["mae.encoder.pos_embed"], saved["state_dict"]["mae.encoder.pos_embed"]
    )


def test_what_is_typed_wrong_is_one_line(odd, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, part in (
        (["--model.init_args.init_from", "nowhere.ckpt"], "nowhere.ckpt is missing"),
        (["--model.init_args.init_from", str(odd), "--model.init_args.patch_size", "8"], "has patches of 4 pixels"),
        (["--model.init_args.stack", "repeat"], "give that as model.init_args.init_from"),
        (["--model.init_args.init_from", str(odd), "--model.init_args.stack", "twice"], "stack"),
    ):
        assert fit(*RUN, *arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert part in lines[-1]
        assert not list(tmp_path.rglob("last.ckpt"))
