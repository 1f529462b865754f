"""How everything here is trained: the learning-rate rule, the schedule, AdamW, and the module that applies them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from bamboo.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """AdamW under a linear warm-up and half a cosine; the defaults are those of MAE pretraining (He et al. 2022).

    Args:
        base_lr: learning rate for an effective batch of 256; the rate used grows in proportion to the batch.
        min_lr: learning rate at the end of the schedule.
        warmup_epochs: length of the linear warm-up, in epochs (fractions are fine).
        weight_decay: decoupled weight decay of matrices; vectors and biases have none.
        betas: AdamW's decay rates of the two moments.
    """

    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def scaled_lr(base_lr: float, effective_batch: int) -> float:
    """The linear rule (Goyal et al. 2017): base_lr x effective batch / 256, over all devices and accumulated batches."""
    return base_lr * effective_batch / 256


def warmup_cosine(step: int, warmup: float, total: float, peak: float, floor: float = 0.0) -> float:
    """Learning rate at a step: from 0 up to `peak` over `warmup` steps, then half a cosine to `floor` at `total`."""
    if step < warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


class TrainingModule(LightningModule):
    """A LightningModule that trains by a `Recipe`. A task adds `compute`, the maths of one step.

    Args:
        recipe: learning rate, schedule and optimizer.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def compute(self, batch: Any, batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what else is worth logging, for one batch in `train` or `val`."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of training; Lightning does the rest."""
        loss, logs = self.compute(batch, batch_idx, "train")
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in logs.items()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over two groups, with and without weight decay. The learning rate is set before every step."""
        groups = param_groups_weight_decay(self, self.recipe.weight_decay)
        # Fused AdamW unscales by itself, which clipping under mixed precision does not allow.
        fused = not (self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision))
        return torch.optim.AdamW(groups, lr=self.recipe.base_lr, betas=self.recipe.betas, fused=fused)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model. Raises `InputError` naming the first weight that differs."""
        ours, theirs = self.state_dict(), checkpoint["state_dict"]
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            here, there = (list(state[name].shape) if name in state else "absent" for state in (ours, theirs))
            if here != there:
                raise InputError(f"the checkpoint is of another model: {name} is {there} in it and {here} here")

    def on_train_start(self) -> None:
        """Fix the schedule, which depends on the data and the devices. Raises `InputError` for a run without an end."""
        trainer = self.trainer
        total = float(trainer.estimated_stepping_batches)
        if not math.isfinite(total):
            raise InputError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self._schedule = {
            "warmup": min(self.recipe.warmup_epochs * steps_per_epoch, total),
            "total": total,
            "peak": scaled_lr(self.recipe.base_lr, self.effective_batch()),
            "floor": self.recipe.min_lr,
        }

    def effective_batch(self) -> int:
        """Samples that one optimizer step sees, over all devices and accumulated batches."""
        source = getattr(self.trainer, "datamodule", None) or self.trainer.train_dataloader
        return int(source.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, a pure function of the step: nothing to save, nothing for a resumed run to lose."""
        lr = warmup_cosine(self.trainer.global_step, **self._schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.log("train/lr", lr)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient, at the steps that are logged."""
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", nn.utils.get_total_norm(gradients))
