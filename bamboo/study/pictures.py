"""What the cells of a study make of the same images: reconstructions, and maps of similarity."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from bamboo.analysis.plots import COLOURS, style

from .spec import Cell

Arrays = Mapping[Cell, Mapping[str, NDArray[Any]]]
"""Cells and what is in their pictures.npz."""

DEPTHS = {0.0: "embedding", 0.25: "25 %", 0.5: "50 %", 0.75: "75 %", 1.0: "last block"}
"""Relative depths that maps are shown at."""


def plot_reconstructions(cells: Arrays) -> Figure:
    """A row for each image: itself, masked, and the paste-up of each cell."""
    parts = [arrays["reconstructions"] for arrays in cells.values()]
    first, titles = parts[0], ["input", "masked", *map(_title, cells)]
    with style():
        figure = Figure(figsize=(1.25 * len(titles), 0.5 + 1.25 * len(first)), layout="constrained")
        axes = figure.subplots(len(first), len(titles), squeeze=False)
        for row, line in enumerate(axes):
            for axis, picture in zip(line, (*first[row, :2], *(part[row, 3] for part in parts)), strict=True):
                _show(axis, picture.transpose(1, 2, 0))
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=8)
    return figure


def plot_maps(cells: Arrays, number: int) -> Figure:
    """A row for each cell, relative depth across: cosine of each patch to the framed one, for one image."""
    low = min(0.0, *(float(arrays["to_patch"][number].min()) for arrays in cells.values()))
    with style():
        figure = Figure(figsize=(2.2 + 1.1 * (len(DEPTHS) + 1), 0.4 + 1.0 * len(cells)), layout="constrained")
        axes = figure.subplots(len(cells), len(DEPTHS) + 1, squeeze=False)
        for line, (cell, arrays) in zip(axes, cells.items(), strict=True):
            maps, picture = arrays["to_patch"][number], arrays["images"][number]
            _show(line[0], picture)
            _frame(line[0], picture, maps.shape[1:])
            line[0].set_ylabel(_title(cell), rotation=0, ha="right", va="center", fontsize=8)
            for axis, share in zip(line[1:], DEPTHS, strict=True):
                shown = axis.imshow(maps[round(share * (len(maps) - 1))], cmap="viridis", vmin=low, vmax=1)
                _bare(axis)
        for axis, name in zip(axes[0, 1:], DEPTHS.values(), strict=True):
            axis.set_title(name, fontsize=8)
        figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.7, aspect=30, label="cosine")
    return figure


def _title(cell: Cell) -> str:
    axes = "".join(f"\n{name.split('.')[-1]} {value}" for name, value in cell.axes)
    return f"{cell.objective}\n{cell.label}{axes}"


def _show(axis: Any, picture: NDArray[Any]) -> None:
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
    _bare(axis)


def _bare(axis: Any) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _frame(axis: Any, picture: NDArray[Any], grid: tuple[int, ...]) -> None:
    height, width = picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    corner = (grid[1] // 2 * width - 0.5, grid[0] // 2 * height - 0.5)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.5))
