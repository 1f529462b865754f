"""Maps of token similarity over sample images, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError

from .captures import State, capture
from .feeding import Batch, Feeder, encoder_of, evaluating
from .plots import style

COLUMNS = 8


@dataclass(frozen=True, eq=False)
class Maps:
    """Cosines of patches over a few images.

    Args:
        label: what the model is called.
        pictures: bytes (samples, H, W, 3).
        to_patch: cosine of every patch to the one in the centre, (samples, layers, rows, columns); layer 0 is the
            embedding.
        to_mean: cosine of every patch to the mean patch token, likewise.
    """

    label: str
    pictures: NDArray[np.uint8]
    to_patch: NDArray[np.float32]
    to_mean: NDArray[np.float32]

    @property
    def centre(self) -> tuple[int, int]:
        """Row and column of the patch that the others are compared with."""
        return self.to_patch.shape[2] // 2, self.to_patch.shape[3] // 2


def similarity_maps(
    model: nn.Module, images: Tensor, label: str, blocks: str | None = None, prefix: int | None = None
) -> Maps:
    """Cosine of each patch to the central patch and to the mean patch after each block, over byte images (B, C, H, W).

    `blocks` and `prefix` are those of `profile`.

    Raises:
        InputError: where the model cannot be profiled, or its tokens make no grid over the images.
    """
    if images.dtype != torch.uint8:
        raise InputError(f"maps are drawn over images of bytes, got {images.dtype}")
    model = encoder_of(model)
    feeder, batch = Feeder(model, "patches", 0.0, 0, prefix), Batch(images=images.to(next(model.parameters()).device))
    layout = feeder.layout(batch)
    found: list[tuple[Tensor, Tensor]] = []

    def reducer(state: State) -> None:
        if state.position == "stream":
            tokens = state.tokens[:, layout.start :].float()
            rows, columns = layout.grid(tokens.shape[1]) or (1, 1)
            unit = F.normalize(tokens, dim=-1)
            centre = unit[:, rows // 2 * columns + columns // 2]
            mean = F.normalize(tokens.mean(1), dim=-1)
            maps = [(unit @ to.unsqueeze(-1)).view(-1, rows, columns).cpu() for to in (centre, mean)]
            found.append((maps[0], maps[1]))

    with evaluating(model), capture(model, reducer, blocks):
        feeder.run(batch, batch.fingerprints())
    to_patch, to_mean = (torch.stack(part, dim=1).numpy() for part in zip(*found, strict=True))
    pictures = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return Maps(label, pictures.permute(0, 2, 3, 1).cpu().numpy(), to_patch, to_mean)


def plot_maps(maps: Maps) -> Figure:
    """Two rows for each image: cosine to the marked patch and to the mean patch, over the picture, at some layers.

    Of more than 8 layers, 8 are shown: the embedding, the last, and others evenly between.
    """
    layers = _spread(maps.to_patch.shape[1])
    rows = [(i, name) for i in range(len(maps.pictures)) for name in ("to_patch", "to_mean")]
    low = min(float(maps.to_patch[:, layers].min()), float(maps.to_mean[:, layers].min()), 0.0)
    with style():
        figure = Figure(figsize=(0.9 + 1.05 * (len(layers) + 1), 0.45 + 1.1 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(layers) + 1, squeeze=False)
        for line, (sample, name) in zip(axes, rows, strict=True):
            _show_picture(line[0], maps, sample, name)
            for axis, layer in zip(line[1:], layers, strict=True):
                drawn = _show_map(axis, maps.pictures[sample], getattr(maps, name)[sample, layer], low)
        for axis, layer in zip(axes[0, 1:], layers, strict=True):
            axis.set_title("embedding" if layer == 0 else f"block {layer}", fontsize=8)
        figure.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.6, aspect=30, label="cosine")
        figure.suptitle(maps.label)
    return figure


def _spread(count: int) -> Sequence[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int).tolist()))


def _show_picture(axis: Any, maps: Maps, sample: int, name: str) -> None:
    picture, (row, column) = maps.pictures[sample], maps.centre
    axis.imshow(picture)
    if name == "to_patch":
        height, width = picture.shape[0] / maps.to_patch.shape[2], picture.shape[1] / maps.to_patch.shape[3]
        corner = (column * width - 0.5, row * height - 0.5)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#D55E00", linewidth=1.5))
    axis.set_ylabel({"to_patch": "to the patch", "to_mean": "to the mean"}[name], fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)


def _show_map(axis: Any, picture: NDArray[np.uint8], cosines: NDArray[np.float32], low: float) -> Any:
    height, width = picture.shape[:2]
    axis.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    drawn = axis.imshow(cosines, cmap="viridis", vmin=low, vmax=1, alpha=0.75, extent=extent, interpolation="nearest")
    axis.axis("off")
    return drawn
