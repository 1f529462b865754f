"""Pretraining of a masked autoencoder: the thin Lightning module around `bamboo.vision.mae`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from bamboo.errors import InputError
from bamboo.recipes import Recipe
from bamboo.training import TrainingModule, plain_arguments
from bamboo.vision.data import ImageData
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale


class MAEPretraining(TrainingModule):
    """Trains the masked autoencoder that `build_mae` makes of the remaining arguments.

    Args:
        recipe: learning rate, schedule and optimizer.
        seed: masks are a pure function of it, the epoch, the step and a sample's place in the batch over all devices.
        mean: mean of each channel on a scale of 0 to 1, for standardising; ImageNet's for three channels.
        std: standard deviation of each channel, likewise.
        compile: compile each block where there is a GPU.
        grad_checkpointing: trade a second forward pass of the encoder's blocks for their memory.
        mae: arguments of `bamboo.vision.mae.build_mae`.
    """

    def __init__(
        self,
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        compile: bool = False,
        grad_checkpointing: bool = False,
        **mae: Any,
    ) -> None:
        arguments = plain_arguments(locals(), "mae")
        super().__init__(recipe)
        self.save_hyperparameters(arguments)
        self.seed, self.compile_blocks = seed, compile
        self.mae = build_mae(**mae)
        self.mae.encoder.set_grad_checkpointing(grad_checkpointing)
        self.pixels = PixelScale(self.mae.encoder.patch_embed.proj.in_channels, mean, std)
        self.val_loss, self.val_samples = MeanMetric(), SumMetric()

    def setup(self, stage: str) -> None:
        """Check that the data fit, and compile the blocks in place, which leaves the names of the weights alone."""
        self._check_data(getattr(self.trainer, "datamodule", None))
        self.compile_on_gpu([*self.mae.encoder.blocks, *self.mae.decoder.blocks])

    def compute(self, batch: Mapping[str, Any], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of byte images (B, C, H, W) under the masks of this step."""
        images = self.pixels(batch["image"])
        shape, epoch = (len(images), self.mae.encoder.patch_embed.num_patches), self.current_epoch
        noise = self.noise(shape, stage, epoch if stage == "train" else 0, batch_idx)
        skipped = {"skipped_images": torch.tensor(float(len(batch["skipped"])))} if batch.get("skipped") else {}
        return self.mae(images, noise).loss, skipped

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Reconstruction loss under masks that are the same in every epoch; every sample counts once."""
        count = len(batch["image"])
        loss, _ = self.compute(batch, batch_idx, "val")
        if count:  # none where every image of the batch is unreadable
            self.val_loss.update(loss, weight=count)
        self.val_samples.update(count)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/samples", self.val_samples)

    def flops_per_sample(self) -> int:
        """FLOPs of one training step on one image: a backward pass costs as much as two forward passes."""
        return 3 * self.mae.flops

    def _check_data(self, data: Any) -> None:
        expected = (self.mae.encoder.patch_embed.proj.in_channels, *self.mae.encoder.patch_embed.img_size)
        if isinstance(data, ImageData) and expected != (data.in_chans, *data.size):
            raise InputError(
                f"the data gives images of (channels, height, width) {(data.in_chans, *data.size)} and the model "
                f"expects {expected}: set image_size and in_chans alike under data.init_args and model.init_args"
            )
