"""The split of similarity against its definition, written out pair by pair, and its sums against one big batch."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bamboo.analysis import Profile, capture, profile
from bamboo.analysis.measures.similarity_split import GROUPS, SPLIT, SplitSums, pooled, sample_sums, split, united

from .test_profiling import share, text_batch, timm_vit_of
from .tiny import DEPTH, TEXT, images, timm_vit

SHARES = ("common_share", "position_share", "sample_share", "own_share")


def tokens(samples: int = 7, count: int = 5, width: int = 6, seed: int = 0) -> torch.Tensor:
    """With something in common, something of each position and something of each sample."""
    generator = torch.Generator().manual_seed(seed)
    parts = ((samples, count, width), (1, 1, width), (1, count, width), (samples, 1, width))
    scales = (1.0, 0.7, 0.5, 0.8)
    drawn = [scale * torch.randn(part, generator=generator) for scale, part in zip(scales, parts, strict=True)]
    return drawn[0] + drawn[1] + drawn[2] + drawn[3]


def units(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def within(samples: list[np.ndarray]) -> float:
    return float(
        np.mean([np.mean([u[i] @ u[j] for i, j in product(range(len(u)), repeat=2) if i != j]) for u in samples])
    )


def between(samples: list[np.ndarray]) -> float:
    pairs = [(u, v) for i, u in enumerate(samples) for j, v in enumerate(samples) if i != j]
    return float(np.mean([np.mean([a @ b for a, b in product(u, v)]) for u, v in pairs]))


def of(found: list[tuple], place: tuple[str, int] = ("stream", 0)) -> dict[str, float]:
    return {name: value.mean for at, layer, name, value in found if (at, layer) == place}


def summed(x: torch.Tensor, mask: torch.Tensor | None = None, positioned: bool = True, size: int = 100) -> SplitSums:
    sums, groups = SplitSums(), torch.arange(len(x)) % GROUPS
    for i in range(0, len(x), size):
        part = slice(i, i + size)
        sums.add(("stream", 0), x[part], None if mask is None else mask[part], groups[part], positioned)
    return sums


def test_every_part_is_that_of_the_definition():
    x = tokens()
    found, u = of(list(pooled(summed(x).state()))), units(x)
    mean, position, sample = u.mean((0, 1)), u.mean(0), u.mean(1)
    own = u - position - sample[:, None] + mean
    wanted = {
        "common_share": mean @ mean,
        "position_share": np.mean([np.sum((p - mean) ** 2) for p in position]),
        "sample_share": np.mean([np.sum((c - mean) ** 2) for c in sample]),
        "own_share": np.mean(np.sum(own**2, -1)),
        "between_similarity": between(list(u)),
        "excess_similarity": (within(list(u)) - between(list(u))) / (1 - between(list(u))),
        "same_position_similarity": np.mean(
            [u[a, i] @ u[b, i] for a, b, i in product(range(7), range(7), range(5)) if a != b]
        ),
    }
    assert found.keys() == wanted.keys() == set(SPLIT)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert sum(found[name] for name in SHARES) == pytest.approx(1, abs=1e-6)


def test_texts_of_different_length_count_alike_and_leave_position_out():
    x, lengths = tokens(4, 6), [6, 2, 5, 3]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    garbage = x.masked_fill(~mask.unsqueeze(-1), torch.nan)
    found = of(list(pooled(summed(garbage, mask, positioned=False).state())))
    samples = [units(row[:n]) for row, n in zip(x, lengths, strict=True)]
    means = np.stack([u.mean(0) for u in samples])
    common = np.sum(means.mean(0) ** 2)
    assert set(found) == {*SPLIT} - {"position_share", "same_position_similarity"}
    assert found["between_similarity"] == pytest.approx(between(samples), rel=1e-5)
    expected = (within(samples) - between(samples)) / (1 - between(samples))
    assert found["excess_similarity"] == pytest.approx(expected, rel=1e-5)
    assert found["common_share"] == pytest.approx(common, rel=1e-5)
    assert found["sample_share"] == pytest.approx(np.mean(np.sum(means**2, -1)) - common, rel=1e-5)
    assert found["own_share"] == pytest.approx(1 - np.mean(np.sum(means**2, -1)), rel=1e-5)


def test_samples_that_are_undefined_are_left_out_and_zero_tokens_have_cosine_0():
    x = tokens(6)
    x[1, 2, 3] = torch.nan
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[4, 1:] = False  # one token is no pair
    found = list(pooled(summed(x, mask).state()))
    expected = list(pooled(summed(x[[0, 2, 3, 5]]).state()))
    assert {value.samples for *_, value in found} == {4}
    assert of(found) == pytest.approx(of(expected))
    x = tokens(3)
    x[0, 0] = 0
    u = units(x + torch.finfo().tiny) * (x != 0).numpy()
    zero = of(list(pooled(summed(x).state())))
    assert zero["between_similarity"] == pytest.approx(between(list(u)), rel=1e-5)
    assert sum(zero[name] for name in SHARES) == pytest.approx(14 / 15)


def test_one_sample_has_no_split_and_none_no_similarity():
    one = split(sample_sums(tokens(1)).sum(0))
    assert one.pop("token_similarity").item() == pytest.approx(within(list(units(tokens(1)))), rel=1e-5)
    assert all(value.isnan() for value in one.values())
    assert all(value.isnan() for value in split(torch.zeros(10, dtype=torch.float64)).values())


def test_neither_batches_nor_processes_change_the_sums():
    x = tokens(11)
    whole = summed(x).state()
    parts = summed(x, size=2).state()
    halves = [SplitSums(), SplitSums()]
    for rank, half in enumerate(halves):
        half.add(("stream", 0), x[rank::2], None, torch.arange(11)[rank::2], True)
    for other in (parts, united([half.state() for half in halves])):
        for one, two in zip(whole["stream", 0], other["stream", 0], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


def test_sums_stay_exact_over_many_samples():
    """In fp32 the mean of what a million tokens share would be off in the fifth digit."""
    x = torch.tensor([[[1.0, 0.1], [1.0, 0.1]]]).expand(2000, -1, -1)
    sums = SplitSums()
    for _ in range(200):
        sums.add(("stream", 0), x, None, torch.arange(2000) % GROUPS, True)
    assert sums.sums["stream", 0].dtype == sums.stacks["stream", 0].dtype == torch.float64
    assert of(list(pooled(sums.state())))["common_share"] == pytest.approx(1, abs=1e-6)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of tokens whose expected cosines are known: unit vectors around two means, of the population and of a sample."""
    generator, truth, hits = torch.Generator().manual_seed(0), None, []
    population = torch.tensor([1.0, 0, 0, 0])

    def draw(samples: int) -> torch.Tensor:
        own = torch.randn(samples, 4, 4, generator=generator)
        return population + 0.5 * torch.randn(samples, 1, 4, generator=generator) + 0.5 * own

    truth = of(list(pooled(summed(draw(40_000), size=40_000).state())))
    for _ in range(200):
        found = {name: value for *_, name, value in pooled(summed(draw(53), positioned=False).state())}
        names = ("between_similarity", "excess_similarity")
        hits.append([found[name].low <= truth[name] <= found[name].high for name in names])
    assert (np.abs(np.mean(hits, 0) - 0.95) < 0.045).all(), np.mean(hits, 0)


def test_a_profile_splits_the_patches_of_every_layer_and_after_the_norm():
    model, states = timm_vit_of(0), {}
    found = profile(model, [images(4), images(2, seed=1)])
    with torch.no_grad(), capture(model, lambda s: states.setdefault((s.position, s.layer), s.tokens[:, 1:].clone())):
        model(torch.cat([images(4), images(2, seed=1)]))
    for position, layer in (("stream", 0), ("stream", DEPTH), ("norm", DEPTH)):
        x = units(states[position, layer])
        for name in SPLIT:
            curve = found.curve(name, position)
            assert curve.samples.tolist() == [6] * len(curve.layers)
        at = found.curve("between_similarity", position).layers.index(layer)
        assert found.curve("between_similarity", position).mean[at] == pytest.approx(between(list(x)), rel=1e-4)
    raw, low, high = (
        found.curve(name).mean for name in ("token_similarity", "between_similarity", "excess_similarity")
    )
    np.testing.assert_allclose(high, (raw - low) / (1 - low), rtol=1e-4)
    assert "position_share" not in {name for _, name in profile(TEXT["BERT"](), [text_batch()]).measured}
    assert not profile(model, [images(4)], mask_ratio=0.5).has("position_share")


def test_a_split_does_not_depend_on_batches_order_or_processes(tmp_path):
    model, data = timm_vit_of(0), TensorDataset(images(7))
    one = profile(model, DataLoader(data, 7), SPLIT)
    others = [profile(model, DataLoader(data, 2), SPLIT), profile(model, DataLoader(data, 3, shuffle=True), SPLIT)]
    torch.multiprocessing.start_processes(share, (tmp_path, SPLIT), nprocs=2, start_method="fork")
    for other in (*others, Profile.load(tmp_path / "0"), Profile.load(tmp_path / "1")):
        assert other.pooled.keys() == one.pooled.keys()
        for key, value in one.pooled.items():
            np.testing.assert_allclose(other.pooled[key], value, rtol=1e-5, atol=1e-6, err_msg=str(key))
            assert np.isnan(value.low) == (key.measure in (*SPLIT[-2:], "own_share"))


def test_a_split_needs_no_more_than_positions_times_width(tmp_path):
    found = profile(timm_vit(), [images(4)], SPLIT)
    assert found.values.shape == (4, 0)
    assert [row[3] for row in found.to_pandas().itertuples(index=False)][:1] == ["between_similarity"]
    summed_up = summed(tokens(50, 5, 6))
    assert summed_up.sums["stream", 0].shape == (GROUPS, 6 + 4)
    assert summed_up.stacks["stream", 0].shape == (5, 6)
