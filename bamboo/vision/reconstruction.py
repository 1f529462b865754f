"""Pictures of what a masked autoencoder makes of an image: input, masked, prediction, paste-up."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from bamboo.files import atomic_write
from bamboo.seeds import derive_seed
from bamboo.vision.encoder import gather
from bamboo.vision.mae import MaskedAutoencoder
from bamboo.vision.pixels import PixelScale, patchify, unpatchify

COLUMNS = ("input", "masked", "prediction", "paste-up")
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


def panel(pictures: Tensor, note: str, cell: int = 128) -> Image.Image:
    """One picture of reconstructions (B, 4, C, H, W): a row per image, titles above, and below whose scale is shown."""
    rows, columns, _, height, width = pictures.shape
    scale = max(1, cell // max(height, width))
    pictures = F.interpolate(pictures.flatten(0, 1).float(), scale_factor=scale).to(torch.uint8)
    height, width, gap, margin = height * scale, width * scale, 6, 24
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + 2 * margin), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, title in enumerate(COLUMNS):
        draw.text((gap + column * (width + gap), 5), title, fill="black", font=font)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(to_image(picture), (gap + column * (width + gap), margin + row * (height + gap)))
    draw.text((gap, sheet.height - margin + 4), note, fill="black", font=ImageFont.load_default(size=10))
    return sheet


def to_image(picture: Tensor) -> Image.Image:
    """A byte tensor (C, H, W) as a picture: three channels in colour, any other number by its first in grey."""
    if picture.shape[0] == 3:
        return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
    return Image.fromarray(picture[0].cpu().numpy()).convert("RGB")


def note_for(mae: MaskedAutoencoder) -> str:
    """Whose mean and variance the shown pixels have."""
    return NORM_PIX_NOTE if mae.norm_pix else RAW_NOTE


def save_panel(pictures: Tensor, path: Path, note: str) -> Path:
    """Write a panel as PNG."""
    with atomic_write(path) as temporary:
        panel(pictures, note).save(temporary, format="PNG")
    return path


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
        with trainer.precision_plugin.forward_context():
            pictures = reconstruct(module.mae, module.pixels, images, module.seed)
        log_dir = trainer.log_dir  # all processes must ask for it
        if not trainer.is_global_zero or log_dir is None:
            return
        self.path = save_panel(pictures, Path(log_dir) / "reconstruction.png", note_for(module.mae))
        if isinstance(trainer.logger, TensorBoardLogger):
            sheet = torch.cat([torch.cat(list(row), dim=-1) for row in pictures], dim=-2)
            trainer.logger.experiment.add_image("reconstruction", sheet, trainer.global_step)

    def summary(self) -> dict[str, str]:
        """What to print at the end of a run."""
        return {"reconstructions": str(self.path)} if self.path else {}
