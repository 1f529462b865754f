"""Every measure against its definition, written out token by token and pair by pair."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from bamboo.analysis import measures

GRID = (3, 4)


def cosines(x: np.ndarray) -> list[float]:
    return [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for i, a in enumerate(x)
        for j, b in enumerate(x)
        if i != j
    ]


def entropy_rank(x: np.ndarray) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    p = s[s > 0] / s.sum()
    return math.exp(-sum(p * np.log(p)))


def chain(x: np.ndarray) -> float:
    return sum(float(np.sum((a - b) ** 2)) for a, b in pairwise(x)) / float(np.sum(x**2))


def cut(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)
    return norms > 3 * sorted(norms)[(len(norms) - 1) // 2]


NAIVE: dict[str, tuple[Callable[..., Tensor], Callable[[np.ndarray], float]]] = {
    "similarity": (measures.token_similarity, lambda x: np.mean(cosines(x))),
    "absolute": (
        lambda t, m=None: measures.token_similarity(t, m, absolute=True),
        lambda x: np.mean(np.abs(cosines(x))),
    ),
    "high_frequency_ratio": (
        measures.high_frequency_ratio,
        lambda x: np.linalg.norm(x - x.mean(0)) / np.linalg.norm(np.ones((len(x), 1)) @ x.mean(0, keepdims=True)),
    ),
    "relative_residual": (measures.relative_residual, lambda x: np.linalg.norm(x - x.mean(0)) / np.linalg.norm(x)),
    "token_norm": (measures.token_norm, lambda x: np.mean([math.sqrt(sum(v * v for v in row)) for row in x])),
    "outlier_share": (measures.outlier_share, lambda x: cut(x).mean()),
    "without_outliers": (
        lambda t, m=None: measures.token_similarity(t, measures.inliers(t, m)),
        lambda x: np.mean(cosines(x[~cut(x)])),
    ),
    "effective_rank": (measures.effective_rank, entropy_rank),
    "stable_rank": (measures.stable_rank, lambda x: np.sum(x**2) / np.linalg.norm(x, 2) ** 2),
    "dirichlet_chain": (lambda t, m=None: measures.dirichlet_energy(t, None, m), chain),
    "spectrum_dc": (
        lambda t, m=None: measures.spectrum(t, None, m)[:, 0],
        lambda x: len(x) * np.sum(x.mean(0) ** 2) / np.sum(x**2),
    ),
}


def make_tokens(batch: int = 5, count: int = 12, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, count, width, generator=generator) + torch.randn(batch, 1, width, generator=generator)
    tokens[0, 3] *= 40
    return tokens


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measure_equals_its_written_out_definition(name: str, dtype: torch.dtype):
    measure, naive = NAIVE[name]
    tokens = make_tokens().to(dtype)
    expected = [naive(sample) for sample in tokens.double().numpy()]
    result = measure(tokens)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAIVE)
def test_padding_never_counts_in_ragged_text(name: str):
    measure, naive = NAIVE[name]
    tokens, lengths = make_tokens(), [12, 2, 7, 5, 9]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    expected = [naive(sample[:n].double().numpy()) for sample, n in zip(tokens, lengths, strict=True)]
    garbage = tokens.masked_fill(~mask.unsqueeze(-1), torch.nan)
    np.testing.assert_allclose(measure(garbage, mask), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAIVE)
def test_measure_stays_in_fp32_under_autocast(name: str):
    measure, _ = NAIVE[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = measure(make_tokens())
    torch.testing.assert_close(result, measure(make_tokens()))


@pytest.mark.parametrize("name", [n for n in NAIVE if n not in ("token_norm", "outlier_share")])
def test_rotating_and_scaling_all_tokens_changes_nothing(name: str):
    measure, _ = NAIVE[name]
    tokens = make_tokens()
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1))).Q
    torch.testing.assert_close(measure(2.5 * tokens @ rotation), measure(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAIVE if n != "dirichlet_chain"])
def test_order_of_tokens_matters_only_to_neighbours(name: str):
    measure, _ = NAIVE[name]
    tokens = make_tokens()
    torch.testing.assert_close(measure(tokens.flip(1)), measure(tokens))
    torch.testing.assert_close(measure(tokens[:, torch.randperm(12)]), measure(tokens), rtol=1e-4, atol=1e-5)


def test_identical_tokens_are_similar_1_and_have_no_high_frequencies():
    tokens = torch.randn(3, 1, 8).expand(-1, 6, -1)
    torch.testing.assert_close(measures.token_similarity(tokens), torch.ones(3))
    torch.testing.assert_close(measures.high_frequency_ratio(tokens), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(measures.relative_residual(tokens), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(measures.effective_rank(tokens), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(measures.dirichlet_energy(tokens, (2, 3)), torch.zeros(3))
    torch.testing.assert_close(measures.spectrum(tokens, (2, 3))[:, 0], torch.ones(3))


def test_orthogonal_tokens_are_similar_0_and_opposite_ones_minus_1():
    torch.testing.assert_close(measures.token_similarity(torch.eye(6)[None]), torch.zeros(1), atol=1e-7, rtol=0)
    torch.testing.assert_close(measures.effective_rank(torch.eye(6)[None]), torch.full((1,), 6.0))
    pair = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    torch.testing.assert_close(measures.token_similarity(pair), torch.full((1,), -1.0))
    torch.testing.assert_close(measures.token_similarity(pair, absolute=True), torch.ones(1))


def test_normalised_tokens_tie_similarity_to_the_high_frequency_part():
    unit = torch.nn.functional.normalize(make_tokens(), dim=-1)
    count = unit.shape[1]
    residual = measures.relative_residual(unit).square()
    torch.testing.assert_close(residual, (1 - measures.token_similarity(unit)) * (count - 1) / count)


@pytest.mark.parametrize("name", NAIVE)
def test_nan_among_the_tokens_gives_nan_for_that_sample_alone(name: str):
    measure, _ = NAIVE[name]
    tokens = make_tokens()
    tokens[2, 4, 1] = torch.nan
    assert measure(tokens).isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    "name", [n for n in NAIVE if n not in ("token_norm", "outlier_share", "effective_rank", "stable_rank")]
)
def test_one_token_alone_gives_nan(name: str):
    measure, _ = NAIVE[name]
    mask = torch.zeros(5, 12, dtype=torch.bool)
    mask[:, 2] = True
    assert measure(make_tokens(), mask).isnan().all()
    assert measure(make_tokens()[:, :1]).isnan().all()


def test_a_zero_token_is_orthogonal_to_all():
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(measures.token_similarity(tokens), torch.tensor([2 / 6]))


def test_prefix_similarity_is_the_mean_cosine_between_two_groups():
    tokens = make_tokens()
    prefix = torch.zeros(5, 12, dtype=torch.bool)
    prefix[:, :2] = True
    mask = ~prefix
    mask[:, -1] = False
    expected = []
    for sample in tokens.double():
        unit = sample / sample.norm(dim=1, keepdim=True)
        expected.append((unit[:2] @ unit[2:-1].T).mean())
    torch.testing.assert_close(measures.prefix_similarity(tokens, prefix, mask), torch.stack(expected).float())


def test_dirichlet_energy_of_a_hand_written_grid():
    tokens = torch.tensor([[[0.0], [1.0], [3.0], [3.0]]])  # 0 1 over 3 3
    torch.testing.assert_close(measures.dirichlet_energy(tokens, (2, 2)), torch.tensor([(1 + 0 + 9 + 4) / 19]))
    mask = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(measures.dirichlet_energy(tokens, (2, 2), mask), torch.tensor([(1 + 9) / 10]))


def naive_rings(sample: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, columns = grid
    energy = np.zeros(max(min(grid) // 2, 1) + 1)
    for u in range(rows):
        for v in range(columns):
            wave = np.array(
                [np.exp(-2j * np.pi * (u * r / rows + v * c / columns)) for r in range(rows) for c in range(columns)]
            )
            down, across = Fraction(min(u, rows - u), rows), Fraction(min(v, columns - v), columns)
            twice = 4 * min(grid) ** 2 * (down**2 + across**2)  # squared, to stay exact
            cycles = sum(twice >= (2 * k - 1) ** 2 for k in range(1, rows + columns))
            ring = 0 if u == v == 0 else min(max(cycles, 1), len(energy) - 1)
            energy[ring] += np.sum(np.abs(wave @ sample) ** 2)
    return energy / energy.sum()


@pytest.mark.parametrize("grid", [(3, 4), (4, 4), (2, 8), (5, 5), (1, 12), (6, 12)])
def test_spectrum_of_a_grid_equals_a_written_out_transform(grid: tuple[int, int]):
    tokens = make_tokens(count=grid[0] * grid[1])
    expected = np.stack([naive_rings(sample.double().numpy(), grid) for sample in tokens])
    result = measures.spectrum(tokens, grid)
    assert result.shape[1] == measures.ring_count(grid)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_spectrum_puts_a_wave_into_its_ring():
    rows = torch.arange(8).float()
    wave = torch.cos(2 * math.pi * 2 * rows / 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    assert measures.spectrum(wave, (8, 8))[0].argmax() == 2
    position = torch.arange(28).float()
    fast = torch.cos(math.pi * position).reshape(1, 28, 1)
    torch.testing.assert_close(measures.spectrum(fast)[0, -1], torch.tensor(1.0))
    slow = torch.cos(2 * math.pi * position / 28).reshape(1, 28, 1)
    torch.testing.assert_close(measures.spectrum(slow)[0, 1], torch.tensor(1.0))


def test_every_frequency_of_every_length_falls_into_its_ring():
    for count in (*range(2, 257), 1000, 1023, 1024):
        impulse = torch.zeros(1, count, 1, dtype=torch.float64)
        impulse[0, 0] = 1.0  # the same energy at every frequency
        rings = [-(-14 * min(k, count - k) // count) for k in range(count)]
        expected = np.bincount(rings, minlength=8)
        np.testing.assert_allclose(
            count * measures.spectrum(impulse)[0].numpy(), expected, atol=1e-9, err_msg=f"{count}"
        )


def test_every_frequency_of_a_grid_falls_into_its_ring():
    for rows in range(2, 25):
        grid = (rows, 2 * rows)
        impulse = torch.zeros(1, 2 * rows * rows, 1, dtype=torch.float64)
        impulse[0, 0] = 1.0
        # Over the shorter side u cycles down and v across are sqrt(4 u^2 + v^2) / 2: halves exist, and round up.
        squares = [4 * min(u, rows - u) ** 2 + min(v, 2 * rows - v) ** 2 for u in range(rows) for v in range(2 * rows)]
        rings = [0 if s == 0 else min(max((math.isqrt(s) + 1) // 2, 1), rows // 2) for s in squares]
        expected = np.bincount(rings, minlength=rows // 2 + 1)
        np.testing.assert_allclose(2 * rows * rows * measures.spectrum(impulse, grid)[0].numpy(), expected, atol=1e-9)


def test_spectrum_beyond_dc_is_the_squared_relative_residual():
    tokens = make_tokens()
    for shares in (measures.spectrum(tokens, GRID), measures.spectrum(tokens)):
        torch.testing.assert_close(shares[:, 1:].sum(1), measures.relative_residual(tokens).square())


def test_update_ratio_counts_the_tokens_of_the_mask_alone():
    stream, update = make_tokens(seed=0), make_tokens(seed=1)
    mask = torch.arange(12) < torch.tensor([12, 2, 7, 5, 9])[:, None]
    expected = [update[i, m].norm() / stream[i, m].norm() for i, m in enumerate(mask)]
    torch.testing.assert_close(measures.update_ratio(update, stream, mask), torch.stack(expected))
