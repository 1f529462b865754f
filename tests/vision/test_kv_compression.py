"""Compressed keys and values against loops, against plain attention, and through checkpoints, measures and commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bamboo.analysis.captures import State, capture
from bamboo.analysis.model_sources import fresh_copy, open_model
from bamboo.analysis.profiling import profile
from bamboo.checkpoints import export, load_classifier, load_encoder
from bamboo.cli import main
from bamboo.compiling import compile_in_training
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.optimizers import layer_decay_groups
from bamboo.shapes import Patches, Shape, encoder_flops, find_shape
from bamboo.vision.encoder import build_encoder, encode, options_of
from bamboo.vision.heads import attach_head
from bamboo.vision.kv_compression import CompressedAttention, compress, fit_grid
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pretraining import MAEPretraining
from tests.finetune.runs import last, pretrain, run

SHAPE, PATCHES = Shape(4, 32, 2), Patches.of((16, 24), 4)  # a grid of 4 x 6
SIZES = {"shape": {"depth": 4, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4}
HALF = {"ratio": 2, "from_block": "half"}
FRESH = [
    f"blocks.{at}.attn.kv_{part}.{kind}" for at in (2, 3) for part in ("conv", "norm") for kind in ("weight", "bias")
]


def drawn(patches: Patches = PATCHES, **options) -> VisionTransformer:
    torch.manual_seed(0)
    return build_encoder(SHAPE, patches, **options).eval()


def images(height: int = 16, width: int = 24, count: int = 3) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def changed(model):
    """With no new weight left where it starts."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "kv_" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def by_loops(attention: CompressedAttention, tokens: Tensor, prefix: int, grid: tuple[int, int], ratio: int) -> Tensor:
    """The definition for one sample (T, D), window by window, head by head and query by query."""
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    weight, bias = attention.kv_conv.weight[:, 0], attention.kv_conv.bias
    compressed = []
    for part in (key, value):
        rows = [*part[:prefix]]
        for row in range(0, grid[0], ratio):
            for column in range(0, grid[1], ratio):
                total = bias
                for i in range(ratio):
                    for j in range(ratio):
                        total = total + weight[:, i, j] * part[prefix + (row + i) * grid[1] + column + j]
                centred = total - total.mean()
                scaled = centred / (centred.square().mean() + attention.kv_norm.eps).sqrt()
                rows.append(scaled * attention.kv_norm.weight + attention.kv_norm.bias)
        compressed.append(torch.stack(rows))
    key, value = compressed
    out, size = [], attention.head_dim
    for one in query:
        heads = []
        for head in range(attention.num_heads):
            place = slice(head * size, (head + 1) * size)
            keys = attention.k_norm(key[:, place])
            shares = (keys @ attention.q_norm(one[place]) / size**0.5).softmax(0)
            heads.append(shares @ value[:, place])
        out.append(torch.cat(heads))
    return attention.proj(torch.stack(out))


@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2}, {"reg_tokens": 1, "qk_norm": True}, {"class_token": False}])
def test_it_is_its_definition(more: dict) -> None:
    if "class_token" in more:
        more = {**more, "global_pool": "avg"}
    encoder = changed(drawn(kv_compression=HALF, **more))
    attention, prefix = encoder.blocks[3].attn.double(), encoder.num_prefix_tokens
    shape = (2, prefix + 24, 32)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double, requires_grad=True)
    found = attention(tokens)
    expected = torch.stack([by_loops(attention, one, prefix, (4, 6), 2) for one in tokens])
    torch.testing.assert_close(found, expected)
    weights = [tokens, *attention.parameters()]
    gradients = [torch.autograd.grad(out.square().sum(), weights, retain_graph=True) for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_convolution_is_torchs() -> None:
    own, theirs = CompressedAttention(Attention(8, 2), 3, 1e-6).kv_conv, nn.Conv2d(8, 8, 3, stride=3, groups=8)
    own.load_state_dict(theirs.state_dict())
    grid = torch.randn(2, 6, 9, 2, 8, generator=torch.Generator().manual_seed(1))
    for part, windows in zip(grid.unbind(3), own(grid).unbind(3), strict=True):
        torch.testing.assert_close(windows, theirs(part.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_under_autocast_it_is_close_to_what_it_is_without() -> None:
    encoder = changed(drawn(kv_compression=HALF))
    expected = encode(encoder, images())
    with torch.autocast("cpu", torch.bfloat16):
        found = encode(encoder, images())
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert encode(encoder.bfloat16(), images()).dtype == torch.bfloat16


def test_with_ratio_1_it_is_plain_attention() -> None:
    plain, other = drawn(), drawn(kv_compression={"ratio": 1, "from_block": 0})
    assert other.state_dict().keys() == plain.state_dict().keys()
    assert {type(block.attn) for block in other.blocks} == {Attention}
    assert torch.equal(encode(other, images()), encode(plain, images()))
    assert options_of(other)["kv_compression"] is None


def test_without_its_norm_it_is_plain_attention_where_the_tokens_of_a_window_are_equal() -> None:
    encoder = drawn(kv_compression=HALF, class_token=False, global_pool="avg")
    attention, plain = encoder.blocks[2].attn, Attention(32, 2, qkv_bias=True)
    plain.load_state_dict(attention.state_dict(), strict=False)
    attention.kv_norm = nn.Identity()
    windows = torch.randn(3, 2, 3, 32, generator=torch.Generator().manual_seed(1))
    tokens = windows.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    torch.testing.assert_close(attention(tokens), plain(tokens))


def test_upper_blocks_alone_are_compressed_and_all_else_is_drawn_as_without() -> None:
    plain, other, single = drawn(), drawn(kv_compression=HALF), drawn(kv_compression={"ratio": 2, "from_block": 3})
    assert [isinstance(block.attn, CompressedAttention) for block in other.blocks] == [False, False, True, True]
    assert [isinstance(block.attn, CompressedAttention) for block in single.blocks] == [False, False, False, True]
    assert sorted(other.state_dict().keys() - plain.state_dict().keys()) == sorted(FRESH)
    for name, weight in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)
    assert torch.equal(other.blocks[2].attn.kv_conv.weight, torch.full((32, 1, 2, 2), 0.25))
    assert other.blocks[2].attn.kv_norm.eps == plain.blocks[2].norm1.eps


def test_at_the_switch_features_move_less_than_with_a_convolution_drawn_at_random() -> None:
    """In six networks of random weights, by 0.29 to 0.35 and 0.47 to 0.75; docs/attention.md has trained ones."""
    for seed in range(6):
        torch.manual_seed(seed)
        encoder = build_encoder(SHAPE, PATCHES).eval()
        before = encode(encoder, images())
        compress(encoder, HALF)
        mean = (encode(encoder, images()) - before).norm()
        for block in encoder.blocks[2:]:
            block.attn.kv_conv.weight.data.copy_(nn.Conv2d(32, 32, 2, stride=2, groups=32).weight)
        assert mean < 0.75 * (encode(encoder, images()) - before).norm()


@pytest.mark.parametrize("name", ["vit-base", "bamboo-base"])
@pytest.mark.parametrize("kv_compression", [HALF, {"ratio": 4, "from_block": 1}])
def test_flops_are_those_that_torch_counts(name: str, kv_compression: dict) -> None:
    patches = Patches.of(448 if kv_compression["ratio"] == 2 else 256, 16)
    shape = find_shape(name)
    with torch.device("meta"):
        encoder = build_encoder(shape, patches, kv_compression=kv_compression)
        batch = torch.empty(1, 3, *patches.image_size)
    with FlopCounterMode(display=False) as counter:
        encode(encoder, batch)
    first = options_of(encoder)["kv_compression"]["from_block"]
    options = {"kv_ratio": kv_compression["ratio"], "kv_blocks": shape.depth - first}
    assert counter.get_total_flops() == encoder_flops(shape, patches, **options) < encoder_flops(shape, patches)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ratio": 0}, "ratio must be 1 or more, got 0"),
        ({"ratio": 3}, "ratio 3 does not divide the grid of 4x6 patches: give an image_size that is a multiple of 12"),
        ({"ratio": 2, "from_block": "third"}, "must be 'half' or the number of a block: 'third'"),
        ({"ratio": 2, "from_block": 4}, "must be 'half' or from 0 to 3, got 4"),
        ({"ratio": 2, "from_block": -1}, "must be 'half' or from 0 to 3, got -1"),
        ({"rate": 2}, r"has a ratio and a from_block, got \{'rate': 2\}"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn(kv_compression=asked)


def test_flops_of_a_training_step_are_counted_with_it() -> None:
    plain, module = (Classifier(3, "scratch", **SIZES, kv_compression=asked) for asked in (None, HALF))
    # In two blocks each of 17 queries meets 12 keys less, at 4 FLOPs a channel.
    assert plain.flops_per_sample() - module.flops_per_sample() == 3 * 2 * 4 * 32 * 17 * 12


def test_masks_and_tokens_that_are_no_grid_are_refused() -> None:
    encoder = drawn(kv_compression=HALF)
    with pytest.raises(InputError, match="takes no mask"):
        encoder(images(), attn_mask=torch.ones(25, 25, dtype=torch.bool))
    with pytest.raises(InputError, match="grid of 4x6 patches after 1 others, and there are 9 tokens"):
        encoder.blocks[2](torch.zeros(1, 9, 32))
    with pytest.raises(InputError, match="plain attention, and not AttnScale"):
        drawn(kv_compression=HALF, attention="attn_scale")


def test_another_image_size_is_another_grid() -> None:
    encoder = drawn(kv_compression=HALF)
    encoder.set_input_size((24, 16))
    fit_grid(encoder)
    assert encode(encoder, images(24, 16)).shape == (3, 25, 32)
    encoder.set_input_size((20, 24))
    with pytest.raises(InputError, match="ratio 2 does not divide the grid of 5x6 patches"):
        fit_grid(encoder)


def checkpoint(path: Path, module) -> Path:
    content = {"state_dict": changed(module).state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.0.0", "classes": ["a", "b", "c"]}, path)
    return path


def test_masked_pretraining_refuses_it(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(InputError, match="masking leaves no grid of patches"):
        MaskedAutoencoder(drawn(kv_compression=HALF), build_mae(**SIZES, decoder_shape=Shape(1, 16, 2)).decoder)
    with pytest.raises(InputError, match="masking leaves no grid of patches"):
        profile(drawn(kv_compression=HALF), [images()], measures=["stream"], mask_ratio=0.5)
    source = checkpoint(tmp_path / "classifier.ckpt", Classifier(3, "scratch", **SIZES, kv_compression=HALF))
    monkeypatch.chdir(tmp_path)
    assert (
        pretrain(
            "--model.init_args.init_from", str(source), "--model.init_args.shape", "{depth: 4, width: 32, heads: 2}"
        )
        == 2
    )
    assert "compresses keys and values on the grid of patches" in capsys.readouterr().err
    assert pretrain("--model.init_args.kv_compression.ratio", "2") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_travels_with_a_checkpoint(tmp_path: Path) -> None:
    module = Classifier(3, "scratch", **SIZES, kv_compression=HALF, pool="token", head_init_std=1.0)
    assert module.hparams["kv_compression"] == {"ratio": 2, "from_block": 2}
    source, batch = checkpoint(tmp_path / "classifier.ckpt", module), images(16, 16)
    expected = module.eval()(batch)
    assert torch.equal(Classifier.load_from_checkpoint(source, weights_only=True).eval()(batch), expected)
    torch.testing.assert_close(load_classifier(source)[0](batch), expected)
    again = Classifier(3, source, image_size=16, pool="token", keep_head=True)
    assert again.classes == ["a", "b", "c"]
    assert torch.equal(again.eval()(batch), expected)
    assert options_of(load_encoder(source, image_size=24)[0])["kv_compression"] == {"ratio": 2, "from_block": 2}
    with pytest.raises(InputError, match="ratio 2 does not divide the grid of 5x5"):
        load_encoder(source, image_size=20)
    fresh = fresh_copy(open_model(str(source))).model
    assert torch.equal(fresh.blocks[3].attn.kv_conv.weight, torch.full((32, 1, 2, 2), 0.25))
    for other in (None, {"ratio": 4, "from_block": 2}):
        with pytest.raises(InputError, match=r"the checkpoint has kv_compression \{'ratio': 2, 'from_block': 2\} and"):
            Classifier(3, "scratch", **SIZES, pool="token", kv_compression=other).on_load_checkpoint(
                torch.load(source, weights_only=True)
            )
    with pytest.raises(InputError, match=r"has kv_compression .*model.init_args.kv_compression says .*'ratio': 4"):
        Classifier(3, source, image_size=16, kv_compression={"ratio": 4})
    for format in ("timm", "hf", "reference"):
        with pytest.raises(InputError, match="compresses keys and values, which no format of others knows"):
            export(source, format, tmp_path / "out")  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["avg", "token", "map"])
def test_at_the_switch_a_classifier_keeps_all_that_it_has_and_reports_what_is_new(tmp_path: Path, capsys, pool) -> None:
    before = Classifier(3, "scratch", **SIZES, pool=pool, head_init_std=1.0)
    del before.hparams["kv_compression"], before.hparams["keep_head"]  # of an earlier version
    source = checkpoint(tmp_path / "classifier.ckpt", before)
    assert torch.equal(
        Classifier.load_from_checkpoint(source, weights_only=True).model.head.weight, before.model.head.weight
    )
    Classifier(3, "scratch", **SIZES, pool=pool).on_load_checkpoint(torch.load(source, weights_only=True))
    after = Classifier(3, source, image_size=16, pool=pool, keep_head=True, kv_compression=HALF)
    weights = after.state_dict()
    assert sorted(weights.keys() - before.state_dict().keys()) == sorted(f"model.{name}" for name in FRESH)
    for name, weight in before.state_dict().items():
        assert torch.equal(weights[name], weight), name
    said = capsys.readouterr().out
    assert "8 start fresh: blocks.2.attn.kv_conv.weight" in said
    assert "the head is kept: " in said


def test_a_head_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "classifier.ckpt", Classifier(3, "scratch", **SIZES))
    mae = checkpoint(
        tmp_path / "mae.ckpt", MAEPretraining(**SIZES, decoder_shape={"depth": 1, "width": 16, "heads": 2})
    )
    for encoder, options, said in (
        (mae, {}, "mae.ckpt has no head: give a classifier as encoder"),
        ("scratch", {**SIZES}, "scratch has no head"),
        (source, {"pool": "token"}, "has pool avg and head.weight .3, 32., and here they are token"),
        (source, {"num_classes": 4}, "set pool, num_classes and batch_norm alike"),
    ):
        with pytest.raises(InputError, match=said):
            Classifier(**{"num_classes": 3, "image_size": 16, **options}, encoder=encoder, keep_head=True)


def test_checkpointed_and_compiled_blocks_compute_the_same(graphs) -> None:
    model, found = changed(drawn(kv_compression=HALF)).train(), []
    for change in (lambda: None, model.set_grad_checkpointing, lambda: compile_in_training(model.blocks, "eager")):
        change()
        model.zero_grad()
        encode(model, images()).square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert set(FRESH) < found[0].keys()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert graphs() == (2, 0)  # one for plain blocks, one for compressed ones, and no break


def test_new_weights_have_the_rate_of_their_block() -> None:
    encoder = attach_head(drawn(kv_compression=HALF), 5).requires_grad_(True)
    found = {weight: group for group in layer_decay_groups(encoder, 0.65, 0.05) for weight in group["params"]}
    for block in encoder.blocks[2:]:
        for weight in (*block.attn.kv_conv.parameters(), *block.attn.kv_norm.parameters()):
            assert found[weight]["lr_scale"] == found[block.norm1.weight]["lr_scale"]


def test_maps_are_of_fewer_keys_and_mix_the_values_of_windows() -> None:
    encoder, seen = changed(drawn(kv_compression=HALF)), list[State]()
    with torch.no_grad(), capture(encoder, seen.append, attention=True):
        encoder(images())
        states = [state for state in seen if state.position == "maps"]
        assert [state.attention.probabilities.shape[2:] for state in states] == [(25, 25)] * 2 + [(25, 7)] * 2
        attention, state = encoder.blocks[3].attn, states[3]
        pairs = attention.qkv(state.before)[..., 32:]
        value = attention.compress(pairs)[..., 32:].unflatten(-1, (2, 16)).transpose(1, 2)
        mixed = (state.attention.probabilities @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention.proj(mixed), state.tokens)


def test_measures_of_square_maps_are_undefined_and_all_others_are_measured() -> None:
    found = profile(drawn(kv_compression=HALF), [images()], measures=["all"])
    undefined = {
        (key.measure, key.layer) for key, value in zip(found.keys, found.values.T, strict=True) if np.isnan(value).any()
    }
    square = ("second_singular_value", "smoothing_rate", "attention_bound", "residual_bound")
    assert undefined == {(name, layer) for name in square for layer in (3, 4)}
    plain = {key: value for key, value in zip(found.keys, found.values.T, strict=True) if key.layer <= 2}
    expected = profile(drawn(), [images()], measures=["all"])
    for key, value in zip(expected.keys, expected.values.T, strict=True):
        if key.layer <= 2 and key.position != "norm":
            np.testing.assert_array_equal(plain[key], value)


def test_commands_train_and_look_at_a_model_with_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    assert run("fit", *short) == 0
    assert run("fit", *short, config="high_resolution") == 2
    start = ["--model.init_args.encoder", str(last(tmp_path)), "--model.init_args.keep_head", "true"]
    assert run("validate", *start, "--model.init_args.kv_compression.ratio", "2") == 0
    assert run("fit", *short, *start, "--model.init_args.kv_compression.ratio", "2") == 0
    classifier = last(tmp_path, version=2)  # validating made one too
    resumed = ["--model.init_args.kv_compression.ratio", "2", "--ckpt_path", str(classifier)]
    assert run("fit", *short[2:], "--trainer.max_epochs", "2", *start, *resumed) == 0
    assert options_of(load_classifier(classifier)[0])["kv_compression"] == {"ratio": 2, "from_block": 1}
    words = ["--samples", "8", "--pictures", "1", "--measures", "all"]
    assert main(["profile", str(classifier), "--data", "digits", "--out", "profile", *words]) == 0
    assert main(["knn", str(classifier), "--data", "digits"]) == 0
    assert (
        main(["probe", str(classifier), "--data", "digits", "--epochs", "1", "--samples", "100", "--out", "probe"]) == 0
    )
