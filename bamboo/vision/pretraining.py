"""Pretraining of a masked autoencoder: the thin Lightning module around `bamboo.vision.mae`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, SumMetric

from bamboo.checkpoints.starting import start
from bamboo.compiling import Compile
from bamboo.errors import InputError
from bamboo.recipes import Recipe
from bamboo.stacking import Stack
from bamboo.training import TrainingModule, plain_arguments
from bamboo.vision.data import ImageData
from bamboo.vision.encoder import in_todays_words, set_norm_eps
from bamboo.vision.mae import build_mae
from bamboo.vision.pixels import PixelScale

OF_WEIGHTS = ("mean", "std", "layer_norm_eps", "learned_positions")
"""Options that weights settle: a configuration leaves them open, or must say the same."""


class MAEPretraining(TrainingModule):
    """Trains the masked autoencoder that `build_mae` makes of the remaining arguments.

    Args:
        recipe: learning rate, schedule and optimizer.
        seed: masks are a pure function of it, the epoch, the step and a sample's place in the batch over all devices.
        mean: mean of each channel on a scale of 0 to 1, for standardising; by default as in the weights that training
            starts from, else ImageNet's for three channels.
        std: standard deviation of each channel, likewise.
        compile: compile each block where there is a GPU; or `graphs`, see `bamboo.compiling.Compile`.
        grad_checkpointing: trade a second forward pass of the encoder's blocks for their memory.
        init_from: weights to start from: anything that `bamboo.checkpoints.load_encoder` reads. They are read once, and
            not by a run that `--ckpt_path` resumes: its checkpoint holds all that there is of the model.
        stack: how the blocks of a shallower encoder make this one: `repeat` or `identity`, see
            `bamboo.stacking.origins`.
        layer_norm_eps: epsilon of every LayerNorm; by default as in the weights, else 1e-6.
        learned_positions: train the encoder's positions; by default as in the weights, else they are a fixed table.
        mae: arguments of `bamboo.vision.mae.build_mae`.
    """

    def __init__(
        self,
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        compile: Compile = False,
        grad_checkpointing: bool = False,
        init_from: str | Path | None = None,
        stack: Stack | None = None,
        layer_norm_eps: float | None = None,
        learned_positions: bool | None = None,
        **mae: Any,
    ) -> None:
        arguments = plain_arguments(locals(), "mae")
        super().__init__(recipe)
        if stack and not init_from:
            raise InputError("stack repeats the blocks of an encoder: give that as model.init_args.init_from")
        self.init_from, self.stack, self.has_weights = init_from, stack, init_from is None
        # What a checkpoint says of the model: it has weights, and needs no others to start from.
        self.save_hyperparameters({**arguments, "init_from": None, "stack": None})
        self.seed, self.compile_blocks = seed, compile
        mae = in_todays_words(mae)
        self.mae = build_mae(**mae)
        self.mae.encoder.set_grad_checkpointing(grad_checkpointing)
        self._adopt({}, "")
        self.val_loss, self.val_samples = MeanMetric(), SumMetric()

    def setup(self, stage: str) -> None:
        """Check that the data fit; start from weights, if no checkpoint is to come; compile the blocks in place."""
        self._check_data(getattr(self.trainer, "datamodule", None))
        if self.init_from and not (self.has_weights or self.trainer.ckpt_path):
            self._start(self.init_from)
        self.compile_on_gpu([*self.mae.encoder.blocks, *self.mae.decoder.blocks])

    def compute(self, batch: Mapping[str, Any], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of byte images (B, C, H, W) under the masks of this step."""
        images = self.pixels(batch["image"])
        shape, epoch = (len(images), self.mae.encoder.patch_embed.num_patches), self.current_epoch
        noise = self.noise(shape, stage, epoch if stage == "train" else 0, batch_idx)
        skipped = {"skipped_images": torch.tensor(float(len(batch["skipped"])))} if batch.get("skipped") else {}
        return self.run(lambda *tensors: self.mae(*tensors).loss, images, noise), skipped

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Be the model of the checkpoint. Raises `InputError` for that of another one."""
        self._adopt(checkpoint.get("hyper_parameters", {}), "the checkpoint")
        super().on_load_checkpoint(checkpoint)
        self.has_weights = True

    def _start(self, source: str | Path) -> None:
        report, said = start(self.mae, source, self.stack)
        if self.hparams["learned_positions"] is not None:  # a choice of the run, whatever the source did
            said["learned_positions"] = self.hparams["learned_positions"]
        self._adopt(said, str(source))
        self.has_weights = True
        if self.trainer.is_global_zero:
            pixels = ", ".join(f"{name} {value}" for name, value in self.pixels.statistics().items())
            positions = "go on being learned" if self.hparams["learned_positions"] else "stay fixed"
            print(f"{report}\n  pixels are standardised by {pixels}; positions {positions}")

    def _adopt(self, said: Mapping[str, Any], source: str) -> None:
        """Take what weights say of the model. Raises `InputError` where the configuration says otherwise."""
        for key in OF_WEIGHTS:
            own, theirs = (
                [*value] if isinstance(value, tuple) else value for value in (self.hparams[key], said.get(key))
            )
            if theirs is not None and own not in (None, theirs):
                raise InputError(f"{source} has {key} {theirs}, and model.init_args.{key} says {own}: leave it out")
            self.hparams[key] = own if theirs is None else theirs
        self.pixels = PixelScale(
            self.mae.encoder.patch_embed.proj.in_channels, self.hparams["mean"], self.hparams["std"]
        )
        set_norm_eps(self.mae, self.hparams["layer_norm_eps"])
        self.mae.encoder.pos_embed.requires_grad_(bool(self.hparams["learned_positions"]))

    def _check_data(self, data: Any) -> None:
        expected = (self.mae.encoder.patch_embed.proj.in_channels, *self.mae.encoder.patch_embed.img_size)
        if isinstance(data, ImageData) and expected != (data.in_chans, *data.size):
            raise InputError(
                f"the data gives images of (channels, height, width) {(data.in_chans, *data.size)} and the model "
                f"expects {expected}: set image_size and in_chans alike under data.init_args and model.init_args"
            )
