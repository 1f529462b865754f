"""Maps of token similarity over sample images, layer by layer."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, make_grid

from bamboo.errors import InputError

from .captures import State, capture
from .inputs import Batch, Feeder, encoder_of, evaluating
from .plots import COLOURS, style

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
    feeder, batch = Feeder(model, prefix=prefix), Batch(images=images.to(next(model.parameters()).device))
    layout = feeder.layout(batch)
    to_patch: list[Tensor] = []
    to_mean: list[Tensor] = []

    def reducer(state: State) -> None:
        if state.position == "stream":
            tokens = state.tokens[:, layout.start :].float()
            rows, columns = layout.grid(tokens.shape[1]) or (1, 1)
            unit, mean = F.normalize(tokens, dim=-1), F.normalize(tokens.mean(1), dim=-1)
            centre = unit[:, rows // 2 * columns + columns // 2]
            for maps, vector in ((to_patch, centre), (to_mean, mean)):
                maps.append((unit @ vector.unsqueeze(-1)).view(-1, rows, columns).cpu())

    with evaluating(model), capture(model, reducer, blocks):
        feeder.run(batch, batch.fingerprints())
    pictures = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    stacked = (torch.stack(maps, dim=1).numpy() for maps in (to_patch, to_mean))
    return Maps(label, pictures.permute(0, 2, 3, 1).cpu().numpy(), *stacked)


def plot_maps(maps: Maps) -> Figure:
    """Two rows for each image: cosine to the marked patch and to the mean patch, over the picture, at some layers.

    Of more than 8 layers, 8 are shown: the embedding, the last, and others evenly between.
    """
    count = maps.to_patch.shape[1]
    layers = np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)
    scale = Normalize(min(maps.to_patch[:, layers].min(), maps.to_mean[:, layers].min(), 0), 1)
    tiles = []
    for picture, *pair in zip(maps.pictures, maps.to_patch[:, layers], maps.to_mean[:, layers], strict=True):
        image = torch.from_numpy(picture).permute(2, 0, 1)
        for cosines, shown in zip(pair, (_framed(image, maps), image), strict=True):
            tiles += [shown / 255, *_over(image, cosines, scale)]
    height, width = maps.pictures.shape[1:3]
    gap = max(width // 16, 1)
    grid = make_grid(tiles, nrow=len(layers) + 1, padding=gap, pad_value=1)
    with style():
        figure = Figure(figsize=(0.9 + 1.05 * (len(layers) + 1), 0.45 + 1.1 * 2 * len(maps.pictures)))
        figure.set_layout_engine("constrained")
        axis = figure.subplots()
        axis.imshow(grid.permute(1, 2, 0), interpolation="nearest")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
        names = ["embedding" if layer == 0 else f"block {layer}" for layer in layers]
        axis.set_xticks(_centres(len(layers) + 1, width, gap)[1:], names)
        axis.set_yticks(
            _centres(2 * len(maps.pictures), height, gap), ["to the patch", "to the mean"] * len(maps.pictures)
        )
        figure.colorbar(ScalarMappable(scale, "viridis"), ax=axis, shrink=0.6, aspect=30, label="cosine")
        figure.suptitle(maps.label)
    return figure


def _framed(image: Tensor, maps: Maps) -> Tensor:
    """The image (3, H, W) with a frame around the patch that others are compared with."""
    (row, column), (rows, columns) = maps.centre, maps.to_patch.shape[2:]
    height, width = image.shape[1] / rows, image.shape[2] / columns
    box = torch.tensor([[column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1]])
    return cast(Tensor, draw_bounding_boxes(image, box, colors=COLOURS[1], width=max(image.shape[2] // 100, 1)))


def _over(image: Tensor, cosines: NDArray[np.float32], scale: Normalize) -> Tensor:
    """Maps (layers, rows, columns) as colours over the grey image: (layers, 3, H, W) from 0 to 1."""
    large = F.interpolate(torch.from_numpy(cosines).unsqueeze(1), image.shape[1:]).squeeze(1)
    colours = torch.from_numpy(colormaps["viridis"](scale(large.numpy()))[..., :3]).permute(0, 3, 1, 2)
    return 0.75 * colours.float() + 0.25 * image.float().mean(0) / 255


def _centres(count: int, size: int, gap: int) -> list[float]:
    return [gap + size / 2 + place * (size + gap) for place in range(count)]
