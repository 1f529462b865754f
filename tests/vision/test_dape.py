"""DAPE V2 on images against its definition in loops, under masks, and through checkpoints and commands."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bamboo.analysis.captures import State, capture
from bamboo.checkpoints import export, load_classifier, load_encoder, load_mae
from bamboo.cli import main
from bamboo.compiling import compile_in_training
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.shapes import Patches, Shape
from bamboo.vision.dape import DapeV2
from bamboo.vision.encoder import block_states, build_encoder, embed, encode, flops_of, gather, options_of
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import patchify
from bamboo.vision.pretraining import MAEPretraining
from tests.finetune.runs import SHORT, last, pretrain, run
from tests.interruption import Interruption
from tests.runs import load, same

GRID, PREFIX, WIDTH, HEADS = (3, 4), 2, 12, 3
SHAPE, PATCHES = Shape(2, 32, 2), Patches.of((12, 16), 4)
SIZES: dict[str, Any] = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4}
SIZES["attention"] = "dape_v2"
DECODER = {"decoder_shape": {"depth": 1, "width": 16, "heads": 2}}
ORDER = torch.tensor([[5, 0, 11, 4, 6, 7], [3, 2, 9, 8, 4, 10]])  # neighbours, ends of rows, and gaps


@torch.no_grad()
def changed(model: nn.Module, seed: int = 2) -> Any:
    """With no weight of the adaptation left where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "inner" in name or "outer" in name or "slopes" in name:
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def layer(**options: Any) -> DapeV2:
    torch.manual_seed(0)
    attention = DapeV2(WIDTH, HEADS, qkv_bias=True, norm_layer=nn.LayerNorm, **options)
    attention.grid, attention.prefix = GRID, PREFIX
    return changed(attention.double()).eval()


def tokens_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, PREFIX + count, WIDTH, generator=generator, dtype=torch.double, requires_grad=True)


def encoder_of(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return changed(build_encoder(SHAPE, PATCHES, attention="dape_v2", **options)).eval()


def images(*size: int) -> Tensor:
    return torch.randn(3, 3, *(size or PATCHES.image_size), generator=torch.Generator().manual_seed(1))


def bias_by_hand(attention: DapeV2, places: list[int]) -> Tensor:
    """Minus slope times distance, 0 for the prefix: (heads, T, T)."""
    bias = torch.zeros(HEADS, PREFIX + len(places), PREFIX + len(places), dtype=torch.double)
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            rows, columns = one // GRID[1] - other // GRID[1], one % GRID[1] - other % GRID[1]
            bias[:, PREFIX + i, PREFIX + j] = -attention.slopes * (rows**2 + columns**2) ** 0.5
    return bias


def convolved_by_hand(convolution: nn.Conv1d, read: Tensor, places: list[int]) -> Tensor:
    """A convolution (channels, T, T) at every key over those of the patches beside it, by the grid itself."""
    at = {place: PREFIX + number for number, place in enumerate(places)}
    found = []
    for key in range(read.shape[-1]):
        column = convolution.weight[:, :, 1] @ read[..., key]
        for step in (-1, 1):
            place = places[key - PREFIX] if key >= PREFIX else None
            if place is not None and 0 <= place % GRID[1] + step < GRID[1] and place + step in at:
                column = column + convolution.weight[:, :, 1 + step] @ read[..., at[place + step]]
        found.append(column + convolution.bias[:, None])
    return torch.stack(found, -1)


def logits_by_hand(attention: DapeV2, tokens: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (heads, T, T), and values (heads, T, D), of the tokens of one image (T, width)."""
    query, key, value = attention.qkv(tokens).reshape(len(tokens), 3, HEADS, -1).permute(1, 2, 0, 3)
    scores = attention.q_norm(query) @ attention.k_norm(key).mT / (WIDTH // HEADS) ** 0.5
    bias = bias_by_hand(attention, places)
    hidden = convolved_by_hand(attention.inner, torch.cat([scores, bias]), places)
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    return scores + bias + convolved_by_hand(attention.outer, hidden, places), value


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_its_definition_in_value_and_gradient(masked: bool, qk_norm: bool) -> None:
    attention = layer(qk_norm=qk_norm)
    places = ORDER if masked else torch.arange(12).expand(2, -1)
    tokens = tokens_of(places.shape[1])
    outputs = []
    for one, its_places in zip(tokens, places.tolist(), strict=True):
        logits, value = logits_by_hand(attention, one, its_places)
        outputs.append(attention.proj((logits.softmax(-1) @ value).transpose(0, 1).flatten(1)))
    expected, found = torch.stack(outputs), attention(tokens, places if masked else None)
    torch.testing.assert_close(found, expected)
    weights = [tokens, *attention.parameters()]
    assert len(weights) == 10 + 4 * qk_norm
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), weights, retain_graph=True),
        torch.autograd.grad(expected.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences() -> None:
    attention = layer()
    for places in (None, ORDER):
        tokens = tokens_of(12 if places is None else 6)
        weights = dict(attention.named_parameters())

        def output(tokens: Tensor, *values: Tensor, places: Tensor | None = places, names: Any = tuple(weights)) -> Any:
            return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (tokens, places))

        assert torch.autograd.gradcheck(output, (tokens, *weights.values()), fast_mode=True)


def plain_of(attention: DapeV2) -> Attention:
    """timm's attention with the same weights."""
    plain = Attention(WIDTH, HEADS, qkv_bias=True).double().eval()
    plain.load_state_dict({name: attention.state_dict()[name] for name in plain.state_dict()})
    return plain


@torch.no_grad()
def test_without_the_second_convolution_the_bias_is_left_and_without_that_plain_attention() -> None:
    attention = layer()
    for parameter in attention.outer.parameters():
        parameter.zero_()
    plain = plain_of(attention)
    for places in (torch.arange(12).expand(2, -1), ORDER):
        tokens = tokens_of(places.shape[1])
        bias = torch.stack([bias_by_hand(attention, each) for each in places.tolist()])
        torch.testing.assert_close(attention(tokens, places), plain(tokens, attn_mask=bias))
    attention.slopes.zero_()
    assert torch.equal(attention(tokens, places), plain(tokens, attn_mask=torch.zeros_like(bias)))
    torch.testing.assert_close(attention(tokens, places), plain(tokens))


def test_slopes_start_as_those_of_alibi_and_all_other_weights_as_for_plain_attention() -> None:
    torch.manual_seed(0)
    adapted = build_encoder(Shape(2, 32, 8), PATCHES, attention="dape_v2")
    torch.manual_seed(0)
    plain = build_encoder(Shape(2, 32, 8), PATCHES)
    assert adapted.blocks[1].attn.slopes.tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert all(torch.equal(adapted.state_dict()[name], weight) for name, weight in plain.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_all_patches_in_any_order_are_a_whole_image(options: dict[str, Any]) -> None:
    encoder = encoder_of(**options)
    if encoder.reg_token is not None:
        encoder.reg_token.normal_()
    keep = torch.stack([torch.randperm(12) for _ in range(3)])
    *_, found = block_states(encoder, embed(encoder, patchify(images(), 4), keep), keep)
    found, whole, prefix = encoder.norm(found), encode(encoder, images()), encoder.num_prefix_tokens
    torch.testing.assert_close(found[:, :prefix], whole[:, :prefix], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, prefix:], gather(whole[:, prefix:], keep), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_order_in_which_patches_are_kept_changes_nothing() -> None:
    encoder, order = encoder_of(), torch.tensor([2, 5, 0, 1, 4, 3])
    keep = torch.cat([ORDER, ORDER[:1]])
    *_, one = block_states(encoder, embed(encoder, patchify(images(), 4), keep), keep)
    *_, other = block_states(encoder, embed(encoder, patchify(images(), 4), keep[:, order]), keep[:, order])
    torch.testing.assert_close(one[:, 0], other[:, 0])
    torch.testing.assert_close(one[:, 1:][:, order], other[:, 1:])


@torch.no_grad()
def test_plain_attention_does_not_look_at_places() -> None:
    encoder = build_encoder(SHAPE, PATCHES).eval()
    tokens = embed(encoder, patchify(images(), 4), keep := torch.stack([torch.randperm(12)[:5] for _ in range(3)]))
    for one, other in zip(block_states(encoder, tokens), block_states(encoder, tokens, keep), strict=True):
        assert torch.equal(one, other)


def test_masks_and_patches_without_places_are_refused() -> None:
    encoder = encoder_of()
    with pytest.raises(InputError, match="takes the places of patches, and no attention mask"):
        encoder(images(), attn_mask=torch.ones(13, 13, dtype=torch.bool))
    with pytest.raises(InputError, match="and no attention mask"):
        encoder(images(), is_causal=True)
    with pytest.raises(InputError, match="a grid of 3x4 patches after 1 other tokens, and there are 6 tokens"):
        [*block_states(encoder, torch.zeros(3, 6, 32))]
    with pytest.raises(InputError, match="unknown attention 'dape': did you mean 'dape_v2'"):
        build_encoder(SHAPE, PATCHES, attention="dape")  # type: ignore[arg-type]


def test_flops_are_those_that_are_counted() -> None:
    with torch.device("meta"):
        mae = build_mae(**SIZES, **DECODER)
        pixels, noise = torch.empty(1, 3, 16, 16), torch.empty(1, 16)
    module = Classifier(3, "scratch", **SIZES)
    for forward, said in (
        (lambda: encode(mae.encoder, pixels), flops_of(mae.encoder)),
        (lambda: mae(pixels, noise), mae.flops),
        (lambda: encode(module.model.to("meta"), pixels), module.flops_per_sample() / 3),
    ):
        with FlopCounterMode(display=False) as counted:
            forward()
        assert counted.get_total_flops() == said
    assert flops_of(mae.encoder) > flops_of(build_encoder(SHAPE, Patches.of(16, 4)))


def test_checkpointed_and_compiled_blocks_compute_the_same(graphs) -> None:
    mae, noise = changed(build_mae(**SIZES, **DECODER)).train(), torch.rand(3, 16)
    assert type(mae.decoder.blocks[0].attn) is Attention
    found = []
    compiled = partial(compile_in_training, mae.encoder.blocks, backend="eager")
    for change in (lambda: None, mae.encoder.set_grad_checkpointing, compiled):
        change()
        mae.zero_grad()
        mae(images(16, 16), noise).loss.backward()
        found.append({name: weight.grad for name, weight in mae.named_parameters() if weight.grad is not None})
    assert {"encoder.blocks.1.attn.slopes", "encoder.blocks.0.attn.inner.weight"} < found[0].keys()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert graphs() == (1, 0)  # one for all blocks, and no break


def test_the_adapted_logits_are_those_that_are_measured() -> None:
    encoder, seen = encoder_of().double(), list[State]()
    keep = torch.cat([ORDER, ORDER[:1]])
    with torch.no_grad(), capture(encoder, seen.append, attention=True):
        [*block_states(encoder, embed(encoder, patchify(images(), 4).double(), keep), keep)]
        encoder.norm(torch.zeros(3, 7, 32).double())
    maps = [state for state in seen if state.position == "maps"]
    assert len(maps) == 2
    for state, block in zip(maps, encoder.blocks, strict=True):
        query, key, value = block.attn.qkv(state.before).reshape(3, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)
        assert not torch.allclose(state.attention.logits.double(), query @ key.mT / 4, atol=0.01)
        mixed = (state.attention.probabilities.double() @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.attn.proj(mixed), state.tokens, atol=1e-5, rtol=1e-4)


def checkpoint(path: Path, module: Any, **said: Any) -> Path:
    content = {"state_dict": module.state_dict(), "hyper_parameters": {**module.hparams, **said}}
    torch.save({**content, "pytorch-lightning_version": "2.0.0", "classes": ["a", "b", "c"]}, path)
    return path


def test_it_travels_with_checkpoints_and_to_other_sizes_but_to_no_other_format(tmp_path: Path) -> None:
    module = changed(MAEPretraining(**SIZES, **DECODER)).eval()
    source = checkpoint(tmp_path / "mae.ckpt", module)
    expected = encode(module.mae.encoder, images(16, 16))
    for encoder in (load_encoder(source)[0], load_mae(source).encoder):
        assert options_of(encoder)["attention"] == "dape_v2"
        assert torch.equal(encode(encoder.eval(), images(16, 16)), expected)
    larger = load_encoder(source, image_size=(16, 24))[0]
    assert larger.blocks[0].attn.grid == (4, 6)
    assert encode(larger, images(16, 24)).shape == (3, 25, 32)
    for format in ("timm", "hf", "reference"):
        with pytest.raises(InputError, match="has attention dape_v2, which no format of others knows"):
            export(source, format, tmp_path / "out")
    classifier = changed(Classifier(3, source, image_size=16, head_init_std=1.0)).eval()
    saved = checkpoint(tmp_path / "classifier.ckpt", classifier)
    logits = classifier(images(16, 16))
    assert torch.equal(Classifier.load_from_checkpoint(saved, weights_only=True).eval()(images(16, 16)), logits)
    torch.testing.assert_close(load_classifier(saved)[0](images(16, 16)), logits)
    plain = Classifier(3, "scratch", **{**SIZES, "attention": "plain"})
    with pytest.raises(InputError, match="the checkpoint has attention dape_v2 and the configuration plain"):
        plain.on_load_checkpoint(load(saved))
    with pytest.raises(InputError, match=r'has attention "dape_v2", and model.init_args.attention says "attn_scale"'):
        Classifier(3, source, image_size=16, attention="attn_scale")


@pytest.mark.parametrize("scaled", [False, True])
def test_checkpoints_that_say_attn_scale_are_read_as_before(tmp_path: Path, scaled: bool) -> None:
    kind = "attn_scale" if scaled else "plain"
    sizes = {**SIZES, "attention": kind}
    for name, module in (
        ("mae", MAEPretraining(**sizes, **DECODER)),
        ("classifier", Classifier(3, "scratch", **sizes)),
    ):
        said = load(checkpoint(tmp_path / f"{name}.ckpt", module, attn_scale=scaled))
        said["hyper_parameters"].pop("attention")
        torch.save(said, source := tmp_path / f"{name}.ckpt")
        assert options_of(load_encoder(source)[0])["attention"] == kind
        module.on_load_checkpoint(load(source))
    assert options_of(load_mae(tmp_path / "mae.ckpt").encoder)["attention"] == kind
    older = MAEPretraining.load_from_checkpoint(tmp_path / "mae.ckpt", weights_only=True)
    assert options_of(older.mae.encoder)["attention"] == kind
    assert options_of(load_classifier(tmp_path / "classifier.ckpt")[0])["attention"] == kind


def test_commands_train_resume_and_look_at_such_a_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.attention", "dape_v2", "--data.init_args.fraction", "0.2"]
    every = ["--data.init_args.batch_size", "40", "--checkpoint.every_n_train_steps", "1", *SHORT]
    assert pretrain(*options, *every) == 0
    stop = ["--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=4"]
    with pytest.raises(Interruption):
        pretrain(*options, *every, *stop)
    assert pretrain(*options, *every, "--ckpt_path", "last") == 0
    whole, resumed = (last(tmp_path, "quickstart", version) for version in (0, 1))
    assert same(load(whole)["state_dict"], load(resumed)["state_dict"])
    assert load(whole)["global_step"] == 7
    assert run("fit", *every, *options, "--model.init_args.encoder", str(whole), config="digits") == 0
    words = ["--data", "digits", "--samples", "8", "--pictures", "0", "--measures", "token_similarity", "attention"]
    classifier = str(last(tmp_path, "digits"))
    assert main(["profile", classifier, str(whole), *words, "--mask-ratio", "0.75", "--out", "masked"]) == 0
    assert main(["profile", classifier, *words, "--baseline", "--out", "profile"]) == 0
