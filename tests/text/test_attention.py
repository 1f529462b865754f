"""Models with other positions than learned ones: masked and causal, padded, packed, cached, long, and observed."""

import copy
from itertools import pairwise, product

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from bamboo.analysis.attention_maps import observe_attention
from bamboo.compiling import compile_in_training
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.text import adaptation, attention
from bamboo.text.attention import PositionsOfLayer, attach_positions, attend
from bamboo.text.encoder import blocks_of, build_config, build_model, hidden_states, longest_sequence
from bamboo.text.mlm import documents_of

KINDS, ADAPTIVE = ("none", "rotary", "alibi", "kerple", "fire"), ("none", "dape", "dape_v2")
ARCHITECTURES = ("bert", "roberta", "roberta-prelayernorm")
SHAPE, SEP = Shape(2, 32, 4), 3
EVERY = list(product(KINDS, ADAPTIVE))


def model_of(positions="kerple", adaptive="none", architecture="bert", causal=False, shape=SHAPE, **options):
    torch.manual_seed(0)
    config = build_config(shape, architecture, 120, 16, positions=positions, adaptive=adaptive, **options)
    if not causal:
        return randomised(build_model(config))
    config.is_decoder = True
    return randomised(attach_positions(AutoModelForCausalLM.from_config(config)))


@torch.no_grad()
def randomised(model):
    for name, parameter in model.named_parameters():
        parameter.add_((1.0 if "positions" in name else 0.2) * torch.randn_like(parameter))
    return model.eval()


def tokens(rows=2, length=20, seed=1):
    return torch.randint(5, 120, (rows, length), generator=torch.Generator().manual_seed(seed))


def last_hidden(model, ids, **options):
    return model.base_model(ids, **options).last_hidden_state


def written_out(own, query, key, value, seen, causal, scaling):
    """Attention of a layer by its definition, and its logits; `seen` (B, 1, Q, K)."""
    length, heads = query.shape[2], query.shape[1]
    if own.rotary:
        half = query.shape[-1] // 2
        speeds = [10000 ** (-feature / half) for feature in range(half)]
        angles = torch.tensor([[place * speed for speed in speeds] for place in range(length)], dtype=query.dtype)
        turns = torch.polar(torch.ones_like(angles), angles)
        query, key = (torch.complex(s[..., :half], s[..., half:]) * turns for s in (query, key))
        scores = (query @ key.mH).real * scaling
    else:
        scores = query @ key.mT * scaling
    away = torch.arange(length)[:, None] - torch.arange(length)
    bias = None
    if own.bias is not None:
        bias = own.bias((away.clamp(min=0) if causal else away.abs()).float(), seen)
        bias = bias.expand(scores.shape)
    logits = scores if bias is None else scores + bias
    if own.adaptation is not None:
        read = torch.cat([scores] if bias is None else [scores, bias], 1) * seen
        inner, outer = own.adaptation.inner, own.adaptation.outer
        if isinstance(inner, nn.Linear):
            weights = (part.weight[:, :, None, None] for part in (inner, outer))
        else:
            weights = (inner.weight, outer.weight)
        first, second = weights
        pad = (0, first.shape[-1] // 2)
        hidden = F.leaky_relu(F.conv2d(read, first, inner.bias, padding=pad), 0.01) * seen
        logits = logits + F.conv2d(hidden, second, outer.bias, padding=pad)
    logits = logits.masked_fill(~seen, -torch.inf)
    assert logits.shape[1] == heads
    return logits.softmax(-1) @ value, logits


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_attention_is_its_definition(positions, adaptive, causal, packed):
    """So are the gradients, in which chunks and what they compute again do not show."""
    torch.manual_seed(0)
    own = PositionsOfLayer(positions, adaptive, 4, 6)
    module = nn.Module()
    module.positions, module.is_causal = own, causal
    inputs = [torch.randn(2, 4, 9, 8, requires_grad=True) for _ in range(3)]
    numbers = torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [1] * 2]) if packed else torch.zeros(2, 9)
    seen = (numbers[:, None, :, None] == numbers[:, None, None, :]) & (torch.ones(9, 9).tril() > 0 if causal else True)
    output, _ = attend(module, *inputs, seen if packed else None)
    expected, _ = written_out(own, *inputs, seen, causal, 8**-0.5)
    torch.testing.assert_close(output.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    weights = [*inputs, *own.parameters()]
    loss = torch.randn(expected.shape)
    ours = torch.autograd.grad((output.transpose(1, 2) * loss).sum(), weights)
    theirs = torch.autograd.grad((expected * loss).sum(), weights)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("positions", "adaptive"), [("rotary", "dape"), ("kerple", "dape_v2"), ("fire", "dape_v2")])
def test_gradients_of_attention_are_its_finite_differences(positions, adaptive, monkeypatch):
    monkeypatch.setattr(attention, "PAIRS_ON_CPU", 5)
    monkeypatch.setattr(adaptation, "CACHED_PAIRS", 5)
    monkeypatch.setattr(attention, "LONGEST_WHOLE", 3)
    torch.manual_seed(0)
    module = nn.Module()
    module.positions, module.is_causal = PositionsOfLayer(positions, adaptive, 2, 2).double(), True
    inputs = [torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    parameters = list(module.parameters())
    assert gradcheck(lambda *values: attend(module, *values[:3], None)[0], (*inputs, *parameters), fast_mode=True)


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_combination_trains_a_step(positions, adaptive, causal, architecture):
    model, ids = model_of(positions, adaptive, architecture, causal, dropout=0.1).train(), tokens()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert not any("position_embeddings" in name for name in before)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    own = [name for name in before if ".positions." in name]
    assert bool(own) == (adaptive != "none" or positions in ("kerple", "fire"))
    unseen = ("outer.bias", "bias.m")  # softmax does not see a constant, and the threshold acts below it alone
    assert all(before[name].ne(model.get_parameter(name)).any() for name in own if not name.endswith(unseen))


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("kind", ["dape", "dape_v2"])
def test_an_adaptation_that_ends_in_zero_is_the_plain_bias(positions, kind):
    plain, adapted = model_of(positions), model_of(positions, kind)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    for block in blocks_of(adapted):
        for parameter in block.attention.self.positions.adaptation.outer.parameters():
            nn.init.zeros_(parameter)
    with torch.no_grad():
        left, right = (last_hidden(model, tokens()) for model in (plain, adapted))
    if positions in ("none", "rotary"):  # plain, they take a path of PyTorch's that rounds in another way
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(left, right)


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm"])
def test_nothing_leaks_from_the_future(positions, adaptive, architecture):
    model, ids = model_of(positions, adaptive, architecture, causal=True), tokens()
    other = torch.cat([ids[:, :11], tokens(seed=2)[:, 11:]], 1)
    left, right = last_hidden(model, ids), last_hidden(model, other)
    assert torch.equal(left[:, :11], right[:, :11])
    assert not torch.isclose(left[:, 11:], right[:, 11:]).all(-1).any()


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm"])
def test_documents_of_a_block_and_padded_texts_are_read_as_if_alone(positions, adaptive, causal, architecture):
    model, block = model_of(positions, adaptive, architecture, causal), tokens(1, 20)
    block[0, [6, 11]] = SEP
    ends = [0, 7, 12, 20]
    numbers = documents_of(block, SEP)
    if causal:
        mask = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()
        packed = last_hidden(model, block, attention_mask=mask)
    else:
        packed = hidden_states(model, block, numbers)
    rows, read = torch.zeros(6, 8, dtype=torch.long), torch.zeros(6, 8, dtype=torch.long)
    for row, (start, end) in enumerate(pairwise(ends)):
        size = end - start
        rows[row, :size], read[row, :size] = block[0, start:end], 1
        rows[row + 3, 8 - size :], read[row + 3, 8 - size :] = block[0, start:end], 1  # padded on the left
    padded = last_hidden(model, rows, attention_mask=read)
    for row, (start, end) in enumerate(pairwise(ends)):
        size, alone = end - start, last_hidden(model, block[:, start:end])[0]
        for found in (packed[0, start:end], padded[row, :size], padded[row + 3, 8 - size :]):
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm"])
def test_generating_with_a_cache_gives_what_it_does_without(positions, adaptive, architecture):
    model, ids = model_of(positions, adaptive, architecture, causal=True), tokens(2, 6)
    read = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    ids = ids.where(read.bool(), 0)
    options = {"attention_mask": read, "max_new_tokens": 16, "do_sample": False, "output_scores": True}
    options |= {"return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    cached, whole = (model.generate(ids, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    assert cached.sequences.shape == (2, 22)  # past the 16 places of a table
    torch.testing.assert_close(torch.stack(cached.scores), torch.stack(whole.scores), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("positions", "adaptive"), [("alibi", "none"), ("fire", "dape"), ("fire", "dape_v2")])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_chunks_of_queries_give_what_all_of_them_give(positions, adaptive, causal, packed, monkeypatch):
    model, ids = model_of(positions, adaptive, causal=causal).double(), tokens()
    ids[:, 8] = SEP
    mask = None
    if packed:
        numbers = documents_of(ids, SEP)
        mask = numbers[:, None, :, None] == numbers[:, None, None, :]
        mask = mask.tril() if causal else mask
    whole = last_hidden(model, ids, attention_mask=mask)
    expected = torch.autograd.grad(whole.square().sum(), [p for n, p in model.named_parameters() if ".layer." in n])
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(a[3].shape), kernel(*a, **k))[1]
    )
    for longest, pairs, most in ((8, 40, 64), (1024, 90, 400)):
        monkeypatch.setattr(attention, "LONGEST_WHOLE", longest)
        monkeypatch.setattr(attention, "PAIRS_ON_CPU", pairs)
        monkeypatch.setattr(adaptation, "CACHED_PAIRS", pairs)
        calls.clear()
        chunked = last_hidden(model, ids, attention_mask=mask)
        assert len(calls) == 2 * (7 if longest == 8 else 1)
        assert max(queries * keys for _, _, queries, keys in calls) <= most
        torch.testing.assert_close(chunked, whole)
        found = torch.autograd.grad(chunked.square().sum(), [p for n, p in model.named_parameters() if ".layer." in n])
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["none", "alibi"])
def test_there_is_no_longest_sequence(architecture, positions):
    model, ids = model_of(positions, architecture=architecture, shape=Shape(1, 8, 1)), tokens(1, 8192)
    assert longest_sequence(model.config) > 10**9
    with torch.no_grad():
        assert last_hidden(model, ids).isfinite().all()


@pytest.mark.parametrize(("positions", "adaptive"), EVERY)
@pytest.mark.parametrize("causal", [True, False])
def test_a_profile_sees_the_logits_that_attention_takes_the_softmax_of(positions, adaptive, causal):
    model, ids, seen_logits, inputs = model_of(positions, adaptive, causal=causal), tokens(), [], []
    own, core = blocks_of(model)[0].attention.self.positions, blocks_of(model)[0].attention.self
    core.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with observe_attention(model, list(blocks_of(model)), lambda layer, read, out, maps: seen_logits.append(maps)):
        output = last_hidden(model, ids)
    assert torch.equal(output, last_hidden(model, ids))
    query, key, value = (
        part(inputs[0]).unflatten(-1, (4, 8)).transpose(1, 2) for part in (core.query, core.key, core.value)
    )
    seen = torch.ones(2, 1, 20, 20, dtype=torch.bool)
    seen = seen.tril() if causal else seen
    _, logits = written_out(own, query, key, value, seen, causal, 8**-0.5)
    assert torch.equal(seen_logits[0].visible, seen.expand_as(logits))
    found = seen_logits[0].logits.masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_attention_in_chunks_cannot_be_observed_and_says_so(monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_WHOLE", 8)
    model = model_of()
    with (
        pytest.raises(InputError, match=r"makes 7 calls .*: its attention cannot be measured"),
        observe_attention(model, list(blocks_of(model)), lambda *_: None),
    ):
        last_hidden(model, tokens())


def test_copies_and_checkpointed_blocks_compute_the_same(monkeypatch):
    monkeypatch.setattr(attention, "PAIRS_ON_CPU", 90)
    model, ids = model_of("fire", "dape_v2").train(), tokens()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    for part in (model, other):
        last_hidden(part, ids).square().sum().backward()
    assert torch.equal(last_hidden(model, ids), last_hidden(other, ids))
    for (name, left), right in zip(model.named_parameters(), other.parameters(), strict=True):
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, msg=name)


@pytest.mark.parametrize(("positions", "adaptive"), [("rotary", "none"), ("kerple", "dape"), ("fire", "dape_v2")])
@pytest.mark.parametrize("pairs", [1 << 17, 500])
def test_blocks_compile_without_a_break(graphs, monkeypatch, positions, adaptive, pairs):
    monkeypatch.setattr(attention, "PAIRS_ON_CPU", pairs)
    monkeypatch.setattr(adaptation, "CACHED_PAIRS", pairs)
    model, ids = model_of(positions, adaptive).train(), tokens()
    compile_in_training(blocks_of(model), backend="eager")
    for _ in range(2):
        hidden_states(model, ids, documents_of(ids, 7)).sum().backward()
    assert graphs() == (1, 0)


def test_half_precision_is_near_single(monkeypatch):
    for positions, adaptive in EVERY:
        model, ids = model_of(positions, adaptive), tokens()
        single = last_hidden(model, ids)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = last_hidden(model, ids)
        half = last_hidden(copy.deepcopy(model).bfloat16(), ids)
        for found in (mixed, half):
            assert F.cosine_similarity(found.float(), single, dim=-1).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "alibbi"}, "did you mean 'alibi'"),
        ({"positions": "alibi", "adaptive": "dape_v3"}, "did you mean 'dape_v2'"),
        ({"adaptive": "dape"}, "adaptive dape has no use for learned positions: set positions to one of none, rotary"),
        ({"architecture": "modernbert", "positions": "alibi"}, "modernbert has rotary positions by itself"),
        ({"positions": "rotary", "shape": Shape(2, 9, 3)}, "has 3"),
        ({"max_positions": 0}, "vocab_size and max_positions must be positive"),
    ],
)
def test_positions_that_cannot_be_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        build_config(**{"shape": SHAPE, **options})
    assert "\n" not in str(error.value)
