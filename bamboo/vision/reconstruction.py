"""Pictures of what a masked autoencoder makes of an image: input, masked, prediction, paste-up."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from bamboo.files import atomic_write
from bamboo.loggers import log_picture
from bamboo.seeds import derive_seed
from bamboo.vision.encoder import gather
from bamboo.vision.mae import MaskedAutoencoder
from bamboo.vision.pixels import PixelScale, patchify, unpatchify

COLUMNS = ("input", "masked", "prediction", "paste-up")
CELL, GAP, MARGIN = 128, 6, 24
"""Pixels: side that small pictures are enlarged to, between pictures, and for the text above and below."""
NORM_PIX_NOTE = "predicted patches are shown with the mean and variance of the true ones (norm_pix)"
RAW_NOTE = "predicted pixels are shown as predicted"


@torch.no_grad()
def reconstruct(mae: MaskedAutoencoder, pixels: PixelScale, images: Tensor, seed: int = 0) -> Tensor:
    """Four byte images of each of B byte images (B, C, H, W), in the order of `COLUMNS`: (B, 4, C, H, W).

    The masks are a pure function of the seed and an image's place in the batch. What is not predicted under a
    `predict_ratio` below 1 stays grey.
    """
    standard = pixels(images)
    patches = patchify(standard, mae.patch_size)
    generator = torch.Generator().manual_seed(derive_seed(seed, "panel"))
    noise = torch.rand(patches.shape[:2], generator=generator).to(patches.device)
    training = mae.training
    output = mae.eval()(standard, noise)
    mae.train(training)
    shown = mae.to_pixels(output.predicted, gather(patches, output.masked))
    blank = torch.zeros_like(patches, dtype=torch.float)
    masked = _place(blank, output.keep, gather(patches, output.keep))
    columns = (patches, masked, _place(blank, output.masked, shown), _place(masked, output.masked, shown))
    grid = mae.encoder.patch_embed.grid_size
    return torch.stack([pixels.to_bytes(unpatchify(column, grid, mae.patch_size)) for column in columns], dim=1)


def _place(patches: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return patches.scatter(1, index.unsqueeze(-1).expand_as(values), values.to(patches.dtype))


def note_for(mae: MaskedAutoencoder) -> str:
    """Whose mean and variance the shown pixels have."""
    return NORM_PIX_NOTE if mae.norm_pix else RAW_NOTE


def panel(pictures: Tensor, note: str) -> Image.Image:
    """One picture of reconstructions (B, 4, C, H, W): a row per image, titles above, and below whose scale is shown.

    Images of other than three channels are shown by their first, in grey.
    """
    channels, height, width = pictures.shape[2:]
    cells = pictures.flatten(0, 1)[:, : 3 if channels == 3 else 1].cpu().float()
    cells = F.interpolate(cells, scale_factor=max(1, CELL // max(height, width))).to(torch.uint8)
    grid = make_grid(cells, nrow=len(COLUMNS), padding=GAP, pad_value=255)
    sheet = Image.new("RGB", (grid.shape[2], grid.shape[1] + 2 * MARGIN), "white")
    sheet.paste(to_pil_image(grid), (0, MARGIN))
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        left = GAP + column * (cells.shape[3] + GAP)
        draw.text((left, 5), title, fill="black", font=ImageFont.load_default(size=13))
    draw.text((GAP, sheet.height - MARGIN + 4), note, fill="black", font=ImageFont.load_default(size=10))
    return sheet


def save_panel(pictures: Tensor, path: Path, note: str) -> Image.Image:
    """Write a panel as PNG, and return it."""
    sheet = panel(pictures, note)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
    return sheet


class ReconstructionPanel(Callback):
    """Shows reconstructions of the same validation images under the same masks, in TensorBoard and as a PNG.

    Args:
        every_n_epochs: how often; the end of training is always shown.
        images: how many images.
    """

    def __init__(self, every_n_epochs: int = 20, images: int = 6) -> None:
        self.every_n_epochs, self.images = every_n_epochs, images
        self.path: Path | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, every so many epochs and after the last one."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: Any) -> None:
        _, loader = trainer.datamodule.probe_loaders(self.images)  # type: ignore[attr-defined]
        images = next(iter(loader))["image"][: self.images].to(module.device)
        if not len(images):  # none of these can be read
            return
        with trainer.precision_plugin.forward_context():
            pictures = reconstruct(module.mae, module.pixels, images, module.seed)
        log_dir = trainer.log_dir  # all processes must ask for it
        if not trainer.is_global_zero or log_dir is None:
            return
        self.path = Path(log_dir) / "reconstruction.png"
        sheet = save_panel(pictures, self.path, note_for(module.mae))
        log_picture(trainer, "reconstruction", np.asarray(sheet), trainer.global_step)

    def summary(self) -> dict[str, str]:
        """What to print at the end of a run."""
        return {"reconstructions": str(self.path)} if self.path else {}
