"""All figures of a comparison, in the order of the report."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .data_sources import open_data
from .definitions import DEFINITIONS
from .feeding import read_batch
from .maps import Maps, plot_maps, similarity_maps
from .model_sources import Opened
from .plots import SHARES, plot_curves, plot_shares, plot_spectra
from .profiles import Comparison
from .recorder import BOUNDS
from .theory import describe_theory, plot_theory

BANDS = (
    "Lines are means over samples, bands 95 % bootstrap intervals; a mark at the end is the state after the final norm."
)
DASHED = " Dashed lines are the same architecture, freshly initialised."
SIMILARITIES = ("token_similarity", "between_similarity", "excess_similarity")
OF_SHARES = (
    "Shares of the energy of unit tokens, which add up to one. Token similarity (the line) is common + sample, but for "
    "the cosine of a token with itself. What is common to all samples is no smoothing, however large: the share of the "
    "sample is what over-smoothing feeds."
)


class Section(NamedTuple):
    """A figure with its heading and caption; `name` is that of its files."""

    name: str
    heading: str
    caption: str
    figure: Figure


def draw_all(comparison: Comparison, maps: Sequence[Maps] = ()) -> list[Section]:
    """Every figure that can be drawn of what was measured."""
    return list(_sections(comparison, maps))


def _sections(comparison: Comparison, maps: Sequence[Maps]) -> Iterator[Section]:
    profiles = comparison.profiles
    caption = BANDS + (DASHED if any(profile.baseline for profile in profiles) else "")
    if any(profile.has("common_share") for profile in profiles):
        yield Section("shares", "What similarity is made of", OF_SHARES, plot_shares(profiles))
    measured = {measure for profile in profiles for _, measure in profile.measured}
    similar = [name for name in SIMILARITIES if name in measured]
    if similar:
        heading = "Similarity within samples, between them, and in excess of that" if len(similar) > 1 else "Similarity"
        yield Section("similarity", heading, caption, plot_curves(profiles, similar))
    left_out = (*BOUNDS, *SHARES, *SIMILARITIES, "spectrum")
    names = [name for name in DEFINITIONS if name in measured and name not in left_out]
    if names:
        figure = plot_curves(profiles, names)
        yield Section("measures_relative_depth", "All other measures over relative depth", caption, figure)
    if similar or names:
        figure = plot_curves(profiles, [*similar, *names], relative=False)
        yield Section("measures_absolute_depth", "All measures over absolute depth", caption, figure)
    if any(profile.has("spectrum/0") for profile in profiles):
        text = (
            "Share of the energy by block and ring of frequency; ring 0 is the mean token, which over-smoothing feeds."
        )
        yield Section("spectra", "Spectra", text, plot_spectra(profiles))
    checked = [profile for profile in profiles if profile.has("residual_bound", "attention")]
    if checked:
        text = " ".join(f"{profile.label}. {' '.join(describe_theory(profile))}" for profile in checked)
        yield Section("theory", "The bound of Wang et al. 2022 beside what is measured", text, plot_theory(checked))
    for number, one in enumerate(maps, start=1):
        row, column = one.centre
        text = f"Cosine of each patch to the marked one (row {row}, column {column}) and to the mean patch, by block."
        yield Section(f"maps_{number}", f"Token-similarity maps: {one.label}", text, plot_maps(one))


def maps_of(opened: Opened, data: str, count: int, blocks: str | None = None, prefix: int | None = None) -> list[Maps]:
    """Maps of token similarity over the first images of the data; none for a model of texts, or if none are wanted."""
    if not count or opened.size is None:
        return []
    images = _first(open_data(data, opened, count, count), count)
    return [similarity_maps(opened.model, images, opened.label, blocks, prefix)]


def _first(loader: Iterable[Any], count: int) -> Tensor:
    found: list[Tensor] = []
    for batch in loader:
        images = read_batch(batch).images
        assert images is not None
        found += images.unbind(0)
        if len(found) >= count:
            break
    return torch.stack(found[:count])
