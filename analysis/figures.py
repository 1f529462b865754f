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
from .plots import plot_curves, plot_depths, plot_spectra
from .profiles import Comparison
from .recorder import BOUNDS
from .theory import describe_theory, plot_theory

BANDS = (
    "Lines are means over samples, bands 95 % bootstrap intervals; a mark at the end is the state after the final norm."
)
DASHED = " Dashed lines are the same architecture, freshly initialised."


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
    if any(profile.has("token_similarity") for profile in profiles):
        yield Section("similarity", "Token similarity over depth", caption, plot_depths(profiles, "token_similarity"))
    names = [name for name in DEFINITIONS if name not in (*BOUNDS, "spectrum", "token_similarity")]
    names = [name for name in names if any(measure == name for p in profiles for _, measure in p.measured)]
    for relative, depth in ((True, "relative"), (False, "absolute")) if names else ():
        figure = plot_curves(profiles, names, relative)
        yield Section(f"measures_{depth}_depth", f"All other measures over {depth} depth", caption, figure)
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
