"""Biases, rotations and adaptations against their definitions, written out pair by pair."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from bamboo.text.adaptation import Dape, DapeV2
from bamboo.text.positions import FLOOR, Alibi, Fire, Kerple, alibi_slopes, rotate

LENGTH, HEADS = 7, 3


def distances(causal, dtype=torch.float32):
    places = torch.arange(LENGTH, dtype=dtype)
    distance = places[:, None] - places
    return distance.clamp(min=0) if causal else distance.abs()


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.5)
    return module


@pytest.mark.parametrize(
    ("heads", "powers"),
    [
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (6, [2, 4, 6, 8, 1, 3]),
        (1, [8]),
    ],
)
def test_the_slopes_of_alibi_are_the_published_ones(heads, powers):
    assert alibi_slopes(heads) == pytest.approx([2**-power for power in powers], rel=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_alibi_and_kerple_are_their_definitions(causal):
    alibi, kerple = Alibi(HEADS), randomised(Kerple(HEADS))
    torch.nn.init.constant_(kerple.a[:1], -0.4)  # below the floor
    found = alibi(distances(causal), None), kerple(distances(causal), None)
    slopes = [2**-4, 2**-8, 2**-2]
    for head in range(HEADS):
        p, a = kerple.p[head].item(), max(kerple.a[head].item(), FLOOR)
        for i in range(LENGTH):
            for j in range(LENGTH if not causal else i + 1):
                apart = abs(i - j)
                assert found[0][head, i, j].item() == pytest.approx(-slopes[head] * apart)
                assert found[1][head, i, j].item() == pytest.approx(-p * math.log(1 + a * apart), rel=1e-5)


def test_a_parameter_of_kerple_below_its_floor_can_rise_again():
    kerple = Kerple(2)
    with torch.no_grad():
        kerple.a.fill_(-1.0)
    kerple(distances(True), None).sum().backward()
    assert (kerple.a.grad < 0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", [None, [0, 0, 0, 1, 1, 1, 1]])
def test_fire_is_its_definition_with_places_counted_within_documents(causal, documents):
    fire, numbers = randomised(Fire(HEADS, 4)), documents or [0] * LENGTH
    with torch.no_grad():
        fire.c.neg_()
    same = torch.tensor(numbers)[:, None] == torch.tensor(numbers)
    seen = same.tril() if causal else same
    found = fire(distances(causal), seen if documents is None else seen[None, None])
    found = found if documents is None else found[0]
    c, threshold = abs(fire.c.item()), abs(fire.m.item() * 4)
    for i, j in seen.nonzero().tolist():
        mine = [place for place in range(LENGTH) if numbers[place] == numbers[i]]
        first, last = mine[0], mine[-1]
        reach = i - first if causal else max(i - first, last - i)
        quotient = math.log(c * abs(i - j) + 1) / (math.log(c * max(threshold, reach) + 1) + 1e-6)
        hidden = [max(w * quotient + b, 0) for w, b in zip(fire.inner.weight[:, 0], fire.inner.bias, strict=True)]
        for head in range(HEADS):
            weighted = sum(w * value for w, value in zip(fire.outer.weight[head], hidden, strict=True))
            assert found[head, i, j].item() == pytest.approx((weighted + fire.outer.bias[head]).item(), rel=1e-4)


def test_fire_starts_as_published():
    fire = Fire(HEADS, 512)
    assert (fire.c.item(), fire.m.item(), fire.trained_length) == (pytest.approx(0.1), 1.0, 512)


@pytest.mark.parametrize("start", [0, 300])
def test_rotations_are_those_of_transformers(start):
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, rope_theta=10000.0)
    states = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = LlamaRotaryEmbedding(config)(states, torch.arange(start, start + 5)[None])
    expected, _ = apply_rotary_pos_emb(states, states, cos, sin)
    torch.testing.assert_close(rotate(states, start), expected, rtol=1e-5, atol=1e-5)


def leaky(values):
    return torch.where(values > 0, values, 0.01 * values)


@pytest.mark.parametrize("has_bias", [True, False])
def test_dape_reads_all_heads_of_a_pair(has_bias):
    torch.manual_seed(0)
    dape, scores, bias = Dape(HEADS, has_bias), torch.randn(2, HEADS, 4, 5), torch.randn(HEADS, 4, 5)
    added = dape(scores, bias if has_bias else None, None)
    for sample, i, j in [(0, 0, 0), (1, 3, 4), (1, 2, 0)]:
        read = torch.cat([scores[sample, :, i, j], bias[:, i, j]]) if has_bias else scores[sample, :, i, j]
        hidden = leaky(dape.inner.weight @ read + dape.inner.bias)
        torch.testing.assert_close(added[sample, :, i, j], dape.outer.weight @ hidden + dape.outer.bias)


@pytest.mark.parametrize("has_bias", [True, False])
def test_dape_v2_reads_the_neighbouring_keys_that_a_query_sees(has_bias):
    torch.manual_seed(0)
    dape, scores, bias = DapeV2(HEADS, has_bias), torch.randn(2, HEADS, 4, 5), torch.randn(HEADS, 4, 5)
    seen = torch.rand(2, 1, 4, 5) < 0.7
    added = dape(scores, bias if has_bias else None, seen)
    for sample, i in [(0, 0), (1, 3), (1, 2)]:
        read = torch.cat([scores[sample, :, i], bias[:, i]]) if has_bias else scores[sample, :, i]
        read = torch.nn.functional.pad(read * seen[sample, 0, i], (1, 1))
        inner, outer = dape.inner.weight[:, :, 0], dape.outer.weight[:, :, 0]
        hidden = [leaky((inner * read[:, j : j + 3]).sum((1, 2)) + dape.inner.bias) for j in range(5)]
        hidden = torch.nn.functional.pad(torch.stack(hidden, 1) * seen[sample, 0, i], (1, 1))
        for j in range(5):
            expected = (outer * hidden[:, j : j + 3]).sum((1, 2)) + dape.outer.bias
            torch.testing.assert_close(added[sample, :, i, j], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Kerple, lambda heads: Fire(heads, 3)])
def test_gradients_of_biases_are_their_finite_differences(kind):
    module = randomised(kind(2).double())
    names, values = zip(*module.named_parameters(), strict=True)
    seen = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool).tril()

    def bias(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, parameters, (distances(True, torch.float64), seen))

    assert gradcheck(bias, values)


@pytest.mark.parametrize("kind", [Dape, DapeV2])
def test_gradients_of_adaptations_are_their_finite_differences(kind):
    torch.manual_seed(0)
    module = kind(2, True).double()
    names, values = zip(*module.named_parameters(), strict=True)
    scores, bias = torch.randn(2, 2, 3, 4).double().requires_grad_(), torch.randn(2, 3, 4).double().requires_grad_()
    seen = torch.rand(2, 1, 3, 4) < 0.7

    def added(scores, bias, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (scores, bias, seen))

    assert gradcheck(added, (scores, bias, *values))
