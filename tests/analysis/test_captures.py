"""What `capture` hands over equals what the libraries themselves give, and it leaves no trace."""

import copy
import gc
import weakref
from functools import partial

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn

from bamboo.analysis import State, capture
from bamboo.analysis.architectures import find_prefix, find_stack
from bamboo.analysis.measures import projection_norms
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.vision.encoder import block_states, embed
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import patchify

from .tiny import (
    CAUSAL,
    DEPTH,
    GROUPED,
    PREFIX,
    TEXT,
    VISION,
    image,
    images,
    sentences,
    text,
    timm_vit,
    torchvision_vit,
)

ALL = {**VISION, **TEXT}


def run(model: nn.Module, kind: str) -> object:
    torch.manual_seed(0)
    return model(**sentences()) if kind in TEXT else model(images())


def states_of(model: nn.Module, kind: str, **kwargs: bool) -> list[State]:
    seen: list[State] = []
    with torch.no_grad(), capture(model, seen.append, **kwargs):
        run(model, kind)
    return seen


def stream(seen: list[State]) -> list[torch.Tensor]:
    return [state.tokens for state in seen if state.position == "stream"]


@pytest.mark.parametrize("kind", ALL)
def test_states_come_in_order_of_depth(kind: str):
    seen = states_of(ALL[kind](), kind, branches=True, attention=True)
    assert [s.layer for s in seen if s.position == "stream"] == list(range(DEPTH + 1))
    for position in ("attention", "mlp", "maps"):
        assert [s.layer for s in seen if s.position == position] == list(range(1, DEPTH + 1))
    assert [s.layer for s in seen if s.position == "norm"] == (
        [] if kind in ("BERT", "RoBERTa", "timm EVA") else [DEPTH]
    )


@pytest.mark.parametrize("kind", [kind for kind in VISION if kind.startswith("timm")])
def test_states_are_those_of_timm(kind: str):
    model = VISION[kind]()
    seen = states_of(model, kind)
    with torch.no_grad():
        last, hidden = model.forward_intermediates(images(), output_fmt="NLC", return_prefix_tokens=True)
        expected = (
            [torch.cat([prefix, patches], 1) if prefix.numel() else patches for patches, prefix in hidden]
            if isinstance(hidden[0], tuple)
            else hidden
        )
    for state, reference in zip(stream(seen)[1:], expected, strict=True):
        assert torch.equal(state, reference)
    assert torch.equal(seen[-1].tokens, last)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.startswith("HF") or kind in TEXT])
def test_states_are_those_of_transformers(kind: str):
    model = ALL[kind]()
    seen = states_of(model, kind)
    with torch.no_grad():
        given = sentences() if kind in TEXT else {"pixel_values": images()}
        output = model(**given, output_hidden_states=True)
    states = stream(seen)
    # transformers puts the normed state in place of the last one in some models.
    for state, reference in list(zip(states, output.hidden_states, strict=True))[:-1]:
        assert torch.equal(state, reference)
    assert torch.equal(seen[-1].tokens, output.last_hidden_state)


def test_states_are_those_of_torchvision():
    model = torchvision_vit()
    seen = states_of(model, "torchvision ViT")
    hidden = []
    handles = [layer.register_forward_hook(lambda m, a, o: hidden.append(o)) for layer in model.encoder.layers]
    with torch.no_grad():
        model(images())
    for handle in handles:
        handle.remove()
    for state, reference in zip(stream(seen)[1:], hidden, strict=True):
        assert torch.equal(state, reference)


@pytest.mark.parametrize("kind", ALL)
def test_branch_updates_add_up_to_the_stream(kind: str):
    seen = states_of(ALL[kind](), kind, branches=True)
    by = {(s.layer, s.position): s for s in seen}
    for layer in range(1, DEPTH + 1):
        attention, mlp = by[layer, "attention"], by[layer, "mlp"]
        assert torch.equal(attention.before, by[layer - 1, "stream"].tokens)
        if kind in ("BERT", "RoBERTa"):
            block = find_stack(ALL[kind]()).blocks[0]
            assert block.attention.output.LayerNorm.normalized_shape == (32,)
            normed = torch.nn.functional.layer_norm(attention.before + attention.tokens, (32,), eps=1e-12)
            torch.testing.assert_close(normed, mlp.before)
            normed = torch.nn.functional.layer_norm(mlp.before + mlp.tokens, (32,), eps=1e-12)
            torch.testing.assert_close(normed, by[layer, "stream"].tokens)
        else:
            torch.testing.assert_close(attention.before + attention.tokens, mlp.before)
            torch.testing.assert_close(mlp.before + mlp.tokens, by[layer, "stream"].tokens)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in ("timm EVA", "torchvision ViT")])
def test_attention_maps_equal_those_of_the_explicit_path(kind: str):
    model = ALL[kind]()
    seen = [s for s in states_of(model, kind, attention=True) if s.position == "maps"]
    expected: list[torch.Tensor] = []
    if kind.startswith("timm"):
        for block in model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda m, a, o: expected.append(o))
        run(model, kind)
    else:
        model.set_attn_implementation("eager")
        given = sentences() if kind in TEXT else {"pixel_values": images()}
        expected = list(model(**given, output_attentions=True).attentions)
    read = sentences()["attention_mask"].bool() if kind in TEXT else slice(None)
    for state, reference in zip(seen, expected, strict=True):
        torch.testing.assert_close(state.attention.probabilities.transpose(1, 2)[read], reference.transpose(1, 2)[read])


def test_attention_maps_of_torchvision_equal_those_it_averages():
    model = torchvision_vit()
    seen = [s for s in states_of(model, "torchvision ViT", attention=True) if s.position == "maps"]
    block = model.encoder.layers[0]
    _, mean = block.self_attention(seen[0].before, seen[0].before, seen[0].before, need_weights=True)
    torch.testing.assert_close(seen[0].attention.probabilities.mean(1), mean)


@pytest.mark.parametrize("kind", ["timm with class token", "HF ViT", "BERT"])
def test_attention_is_right_where_fusing_is_off(kind: str):
    fused, explicit = ALL[kind](), None
    explicit = copy.deepcopy(fused)
    if kind.startswith("timm"):
        for block in explicit.blocks:
            block.attn.fused_attn = False
    else:
        explicit.set_attn_implementation("eager")
    pairs = zip(states_of(fused, kind, attention=True), states_of(explicit, kind, attention=True), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.tokens, other.tokens)
    if kind.startswith("timm"):
        assert not any(block.attn.fused_attn for block in explicit.blocks)
    else:
        assert explicit.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ALL)
def test_outputs_are_the_same_with_and_without_capture(kind: str):
    model = ALL[kind]()
    plain = run(model, kind)
    with capture(model, lambda state: None, branches=True, attention=True):
        watched = run(model, kind)
    first, second = (o if isinstance(o, torch.Tensor) else o.last_hidden_state for o in (plain, watched))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6 if kind == "torchvision ViT" else 0)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", ["timm with class token", "torchvision ViT", "HF ViT", "BERT"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind_even_after_an_exception(kind: str, fails: bool):
    model = ALL[kind]().train()
    before = hooks(model), torch.nn.functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    try:
        with capture(model, lambda state: 1 / (0 if fails else 1), branches=True, attention=True):
            run(model, kind)
    except ZeroDivisionError:
        assert fails
    after = hooks(model), torch.nn.functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    assert after == before
    assert all(module.training for module in model.modules())


def test_no_state_outlives_its_reducer():
    model = timm_vit()
    refs: list[weakref.ref[torch.Tensor]] = []
    with torch.no_grad(), capture(model, lambda s: refs.append(weakref.ref(s.tokens)), branches=True, attention=True):
        model(images())
    gc.collect()
    assert len(refs) > 3 * DEPTH
    assert not any(ref() is not None for ref in refs)


def test_gradients_and_random_stream_are_those_of_a_plain_step():
    model = timm_vit(proj_drop_rate=0.3, drop_path_rate=0.3).train()
    gradients = []
    for watched in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        if watched:
            with capture(model, lambda state: None, branches=True, attention=True):
                model(images()).sum().backward()
        else:
            model(images()).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None] + [torch.rand(1)])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_gradient_checkpointing_is_not_seen_twice():
    model = timm_vit().train()
    model.set_grad_checkpointing()
    seen: list[State] = []
    with capture(model, seen.append, branches=True, attention=True):
        model(images()).sum().backward()
    assert [s.layer for s in seen if s.position == "stream"] == list(range(DEPTH + 1))
    assert len([s for s in seen if s.position == "maps"]) == DEPTH
    assert not any(s.tokens.requires_grad for s in seen)


@pytest.mark.parametrize("mix", [False, True])
def test_masked_autoencoder_is_seen_at_its_masked_length(mix: bool):
    mae = build_mae(
        Shape(DEPTH, 32, 4), 16, 4, decoder="cross" if mix else "self", decoder_shape=Shape(2, 16, 4), mix_layers=mix
    )
    pixels, noise = images(), torch.rand(3, 16)
    seen: list[State] = []
    with torch.no_grad(), capture(mae, seen.append):
        mae(pixels, noise)
        tokens = embed(mae.encoder, patchify(pixels, 4), noise.argsort(1)[:, :4])
        expected = [tokens, *block_states(mae.encoder, tokens)]
    first_pass = seen[: DEPTH + 2]
    assert [s.position for s in first_pass] == ["stream"] * (DEPTH + 1) + ["norm"]
    for state, reference in zip(first_pass, [*expected, mae.encoder.norm(expected[-1])], strict=True):
        assert torch.equal(state.tokens, reference)
        assert state.tokens.shape == (3, 5, 32)


def test_compiled_blocks_are_seen():
    model, plain = timm_vit(), timm_vit()
    plain.load_state_dict(model.state_dict())
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        model(images())
    for one, other in zip(states_of(model, "timm"), states_of(plain, "timm"), strict=True):
        assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("kind", VISION)
def test_prefix_is_found(kind: str):
    assert tuple(find_prefix(VISION[kind]())) == PREFIX.get(kind, (True, 0))


def swin_of_timm() -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(1, 1), num_heads=(2, 2))


def swin_of_transformers() -> nn.Module:
    config = transformers.SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    return transformers.SwinModel(config)


def swin_of_torchvision() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4])


@pytest.mark.parametrize("make", [swin_of_timm, swin_of_transformers, swin_of_torchvision])
def test_models_that_work_in_stages_are_refused_with_the_reason(make: partial):
    with pytest.raises(InputError, match=r"merges tokens between stages.*blocks="):
        find_stack(make())


def test_a_stage_named_by_hand_is_refused_where_it_holds_no_token_matrix():
    model = swin_of_timm()
    with pytest.raises(InputError, match=r"\(batch, tokens, width\)"), capture(model, print, blocks="layers.0.blocks"):
        model(torch.zeros(1, 3, 56, 56))


def test_models_without_blocks_and_wrong_names_are_refused():
    with pytest.raises(InputError, match="no list of transformer blocks"):
        find_stack(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match="did you mean 'blocks'"):
        find_stack(timm_vit(), "block")
    with pytest.raises(InputError, match="not a list"):
        find_stack(timm_vit(), "patch_embed")


def test_capped_attention_is_refused_where_attention_is_looked_at():
    model = text("Gemma2", **GROUPED, attn_logit_softcapping=50.0)
    assert len(stream(states_of(model, "BERT"))) == DEPTH + 1
    with pytest.raises(InputError, match=r"Gemma2Model caps the logits.*measures of attention"):
        states_of(model, "BERT", attention=True)


def test_branches_that_run_side_by_side_are_not_taken_for_ones_that_follow():
    kinds = {parallel: text("GPTNeoX", use_parallel_residual=parallel) for parallel in (True, False)}
    seen = {parallel: states_of(model, "BERT", branches=True) for parallel, model in kinds.items()}
    assert not [s for s in seen[True] if s.position in ("attention", "mlp")]
    assert len([s for s in seen[False] if s.position == "attention"]) == DEPTH


@pytest.mark.parametrize("kind", ["BERT", "ModernBERT", *CAUSAL])
def test_norms_of_projections_are_those_of_every_head_written_out(kind: str):
    model = TEXT[kind]()
    (hidden, heads, width), block = (32, 4, 8), find_stack(model).blocks[1]
    if kind == "BERT":
        value, out = block.attention.self.value.weight, block.attention.output.dense.weight
    elif kind == "ModernBERT":
        value, out = block.attn.Wqkv.weight[-hidden:], block.attn.Wo.weight
    else:
        value, out = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
    value, out = value.detach().double().numpy(), out.detach().double().numpy()
    assert len(value) == (16 if kind in CAUSAL else hidden)  # two heads of values for four of queries
    first = [np.linalg.svd(value[i : i + width], compute_uv=False)[0] for i in range(0, len(value), width)]
    second = [np.linalg.svd(out[:, i : i + width], compute_uv=False)[0] for i in range(0, hidden, width)]
    assert projection_norms(block, heads) == pytest.approx((max(first), max(second)), rel=1e-5)


def test_fused_projections_of_grouped_queries_are_told_apart():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 4 * 4 + 2 * 2 * 4), nn.Linear(16, 16)

    block = nn.ModuleDict({"attn": (part := Attention())})
    with torch.no_grad():
        part.qkv.weight.zero_()
        for row, height in ((0, 9.0), (16, 8.0), (24, 3.0), (28, 2.0)):  # a query, a key, the first and second value
            part.qkv.weight[row, 0] = height
        part.proj.weight.copy_(5 * torch.eye(16))
    assert projection_norms(block, 4) == pytest.approx((3.0, 5.0))


def test_blocks_can_be_named():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stuff = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.stuff:
                x = layer(x)
            return x

    seen: list[State] = []
    with capture(Mine(), seen.append, blocks="stuff"):
        Mine.forward(seen_model := Mine(), torch.randn(2, 5, 8))
    assert not seen  # another instance is not watched
    with capture(seen_model, seen.append, blocks="stuff"):
        seen_model(torch.randn(2, 5, 8))
    assert [state.layer for state in seen] == [0, 1, 2]


def test_masked_autoencoder_of_transformers_is_followed():
    model = image("ViTMAE")
    seen: list[State] = []
    with torch.no_grad(), capture(model, seen.append):
        output = model(images(), noise=torch.rand(3, 16), output_hidden_states=True)
    for state, reference in zip(stream(seen)[:-1], output.hidden_states[:-1], strict=True):
        assert torch.equal(state, reference)
    assert torch.equal(seen[-1].tokens, output.last_hidden_state)


def test_text_models_with_heads_are_followed():
    config = text("Bert").config
    model = transformers.BertForMaskedLM(config).eval()
    assert find_stack(model).path == "bert.encoder.layer"
    assert find_stack(transformers.ViTMAEForPreTraining(image("ViTMAE").config)).path == "vit.layers"
