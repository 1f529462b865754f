"""What the cells of a study make of the same images: reconstructions, and maps of similarity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from bamboo.analysis.plots import COLOURS, style

from .spec import Cell

Arrays = Mapping[Cell, Mapping[str, NDArray[Any]]]
"""Cells and what is in their pictures.npz."""

DEPTHS = {"embedding": 0.0, "25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "last block": 1.0}
"""Relative depths that maps are shown at."""


def plot_reconstructions(cells: Arrays) -> Figure:
    """A row for each image: itself, masked, and the paste-up of each cell."""
    parts = [arrays["reconstructions"] for arrays in cells.values()]  # (images, 4, channels, height, width) each
    with style():
        figure, axes = _grid(len(parts[0]), ["input", "masked", *map(_title, cells)])
        for row, line in enumerate(axes):
            for axis, picture in zip(line, (*parts[0][row, :2], *(part[row, 3] for part in parts)), strict=True):
                axis.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
    return figure


def plot_maps(cells: Arrays, number: int) -> Figure:
    """A row for each cell, relative depth across: cosine of each patch to the framed one, for one image."""
    low = min(0.0, *(float(arrays["to_patch"][number].min()) for arrays in cells.values()))
    with style():
        figure, axes = _grid(len(cells), ["", *DEPTHS])
        for (first, *others), (cell, arrays) in zip(axes, cells.items(), strict=True):
            maps, picture = arrays["to_patch"][number], arrays["images"][number]  # (layers, rows, columns) and pixels
            first.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            grid = np.array(maps.shape[1:])
            height, width = picture.shape[:2] / grid
            corner = grid[::-1] // 2 * (width, height) - 0.5
            first.add_patch(Rectangle(tuple(corner), width, height, fill=False, edgecolor=COLOURS[1], linewidth=1.5))
            first.set_ylabel(_title(cell), rotation=0, ha="right", va="center", fontsize=8)
            for axis, share in zip(others, DEPTHS.values(), strict=True):
                shown = axis.imshow(maps[round(share * (len(maps) - 1))], cmap="viridis", vmin=low, vmax=1)
        figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=0.7, aspect=30, label="cosine")
    return figure


def _grid(rows: int, titles: Sequence[str]) -> tuple[Figure, Any]:
    """Axes (rows, columns) for pictures, with a title above each column."""
    figure = Figure(figsize=(1.5 + 1.25 * len(titles), 0.5 + 1.25 * rows), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    return figure, axes


def _title(cell: Cell) -> str:
    axes = "".join(f"\n{name.split('.')[-1]} {value}" for name, value in cell.axes)
    return f"{cell.objective}\n{cell.label}{axes}"
