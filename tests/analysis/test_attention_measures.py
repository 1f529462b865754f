"""Measures of attention against their definitions, and attempts to break the bound."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from bamboo.analysis import measures
from bamboo.analysis.attention_maps import ObservedAttention

LENGTHS = torch.tensor([6, 4, 2])


def make_logits(spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def masked(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(6) < LENGTHS[:, None]
    return logits.masked_fill(~mask[:, None, None, :], -math.inf), mask


def test_entropy_is_1_for_uniform_attention_and_0_for_a_single_key():
    torch.testing.assert_close(measures.attention_entropy(torch.full((2, 3, 5, 5), 0.2)), torch.ones(2, 3))
    torch.testing.assert_close(measures.attention_entropy(torch.eye(5).expand(2, 3, 5, 5)), torch.zeros(2, 3))


def test_entropy_and_second_singular_value_equal_their_definitions_with_padding():
    logits, mask = masked(make_logits())
    attention = logits.softmax(-1)
    for sample, length in enumerate(LENGTHS.tolist()):
        for head in range(2):
            kept = attention[sample, head, :length, :length].double().numpy()
            entropy = np.mean([-sum(p * math.log(p) for p in row) for row in kept]) / math.log(length)
            second = np.linalg.svd(kept, compute_uv=False)[1]
            assert measures.attention_entropy(attention, mask)[sample, head] == pytest.approx(entropy, rel=1e-5)
            assert measures.second_singular_value(attention, mask)[sample, head] == pytest.approx(second, rel=1e-4)


def test_entropy_of_a_causal_map_is_over_the_keys_that_each_query_may_read():
    visible = torch.ones(5, 5, dtype=torch.bool).tril()
    uniform = visible / visible.sum(-1, keepdim=True)
    found = measures.attention_entropy(uniform.expand(2, 3, 5, 5), None, visible.expand(2, 3, 5, 5))
    torch.testing.assert_close(found, torch.ones(2, 3))
    logits, mask = masked(make_logits())
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    attention = logits.masked_fill(~causal, -math.inf).softmax(-1)
    found = measures.attention_entropy(attention, mask, causal.expand_as(attention))
    for sample, length in enumerate(LENGTHS.tolist()):
        for head in range(2):
            rows = attention[sample, head].double().numpy()
            # The first query reads itself alone: nothing to choose, so it does not count.
            shares = [stats.entropy(rows[i, : i + 1], base=i + 1) for i in range(1, length)]
            assert found[sample, head] == pytest.approx(np.mean(shares), rel=1e-5)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float16).min])
def test_keys_that_a_mask_hides_are_not_visible(lowest: float):
    logits = torch.tensor([[[[-300.0, lowest], [2.0, 900.0]]]])
    seen = ObservedAttention(logits, logits.softmax(-1))
    assert seen.visible.tolist() == [[[[True, False], [True, True]]]]


def test_smoothing_rate_runs_from_1_to_the_square_root_of_the_number_of_tokens():
    torch.testing.assert_close(measures.smoothing_rate(torch.zeros(1, 2, 9, 9)), torch.ones(1, 2))
    torch.testing.assert_close(measures.smoothing_rate(torch.full((1, 1, 9, 9), -500.0)), torch.full((1, 1), 3.0))
    torch.testing.assert_close(measures.smoothing_rate(torch.full((1, 1, 9, 9), -math.inf)), torch.full((1, 1), 3.0))
    a, n = 0.7, 9
    expected = math.sqrt(n * math.exp(2 * a) / (math.exp(2 * a) + n - 1))
    assert measures.smoothing_rate(torch.full((1, 1, 9, 9), a)).item() == pytest.approx(expected)


def test_smoothing_rate_leaves_padding_out():
    logits, mask = masked(make_logits())
    expected = [measures.smoothing_rate(logits[i : i + 1, :, :n, :n]) for i, n in enumerate(LENGTHS.tolist())]
    torch.testing.assert_close(measures.smoothing_rate(logits, mask), torch.cat(expected))


def test_no_random_attention_breaks_the_single_head_bound():
    generator = torch.Generator().manual_seed(0)
    for trial in range(300):
        count, spread = 2 + trial % 30, 4 * torch.rand((), generator=generator)
        logits = spread * torch.randn(4, 1, count, count, generator=generator)
        tokens = torch.randn(4, count, 5, generator=generator) + 3
        mixed = logits.softmax(-1)[:, 0] @ tokens
        gain = measures.high_frequency_gain(mixed, tokens)
        assert (gain <= measures.smoothing_rate(logits)[:, 0] + 1e-5).all()


def test_high_frequency_gain_ignores_the_mean_and_padding():
    tokens = torch.randn(3, 6, 5)
    mask = torch.arange(6) < LENGTHS[:, None]
    garbage = tokens.masked_fill(~mask.unsqueeze(-1), torch.nan)
    torch.testing.assert_close(measures.high_frequency_gain(0.5 * garbage + 7, garbage, mask), torch.full((3,), 0.5))
    whole = measures.high_frequency_norm(tokens)
    torch.testing.assert_close(whole, (tokens - tokens.mean(1, keepdim=True)).flatten(1).norm(dim=1))


def test_attention_over_one_token_is_undefined_not_zero():
    one = torch.ones(1, 1, 1, 1)
    assert measures.attention_entropy(one).isnan().all()
    assert measures.second_singular_value(one).isnan().all()
