"""A recipe of training, and its rules: learning rate by batch, batches to accumulate, schedule."""

import math
from dataclasses import dataclass
from typing import Literal

from bamboo.errors import InputError

Schedule = Literal["cosine", "linear", "trapezoid"]


@dataclass(frozen=True)
class Recipe:
    """An optimizer under a schedule that starts with a linear warm-up; the defaults are those of MAE pretraining.

    Args:
        base_lr: learning rate for an effective batch of 256; the rate used grows in proportion to the batch.
        min_lr: learning rate at the end of the schedule.
        warmup_epochs: length of the linear warm-up, in epochs (fractions are fine).
        weight_decay: decoupled weight decay of matrices; vectors and biases have none.
        betas: decay rates of the two moments; LARS takes the first one as its momentum, and CAME a third one for
            deviations from the first moment, 0.9999 if it is left out.
        optimizer: `adamw`; `lars` with a trust coefficient of 0.001, which adapts matrices alone; or `came`, which
            needs half of AdamW's memory and takes 0.5 to 0.9 of its learning rate.
        eps: what AdamW adds to the root of the second moment.
        schedule: after the warm-up half a cosine down to `min_lr`, a straight line, or (`trapezoid`) the full rate
            until a straight line over the last `decay_share`.
        warmup_share: length of the warm-up as a share of the whole run, in place of `warmup_epochs`; a run that
            `trainer.max_time` alone ends has no other.
        decay_share: share of the whole run in which a trapezoid comes down.
        effective_batch: samples that one optimizer step sees, over all processes; as many batches are accumulated as
            that takes, see `accumulation`. 0 for what the processes give, and accumulation as it is configured.
    """

    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.95)
    optimizer: Literal["adamw", "lars", "came"] = "adamw"
    eps: float = 1e-8
    schedule: Schedule = "cosine"
    warmup_share: float | None = None
    decay_share: float = 0.1
    effective_batch: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        counts = (2, 3) if self.optimizer == "came" else (2,)
        if len(self.betas) not in counts or not all(0 <= beta < 1 for beta in self.betas):
            words = " or ".join(map(str, counts))
            raise InputError(f"recipe.betas: {self.optimizer} takes {words} numbers from 0 to below 1: {[*self.betas]}")
        for name in ("warmup_share", "decay_share"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"recipe.{name} must lie between 0 and 1: {getattr(self, name)}")
        for name in ("eps", "effective_batch"):
            if not getattr(self, name) >= 0:
                raise InputError(f"recipe.{name} must be 0 or more: {getattr(self, name)}")


def scaled_lr(base_lr: float, effective_batch: int) -> float:
    """The linear rule (Goyal et al. 2017): base_lr x effective batch / 256, over devices and accumulated batches."""
    return base_lr * effective_batch / 256


def accumulation(effective_batch: int, batch_size: int, processes: int, configured: int = 1) -> int:
    """Batches of `batch_size` on each process to accumulate until a step has seen `effective_batch` samples.

    Raises:
        InputError: where that is no whole number, naming what would fit, or not the accumulation that is configured.
    """
    at_once, (share, rest) = batch_size * processes, divmod(effective_batch, processes)
    if rest:
        below = max(1, effective_batch // at_once) * at_once
        raise InputError(
            f"recipe.effective_batch {effective_batch} cannot be shared equally among {processes} processes: take a "
            f"number of processes that divides it, or an effective batch of {below} or {below + at_once}"
        )
    if share % batch_size:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        near = {max(n for n in fitting if n < batch_size), min((n for n in fitting if n > batch_size), default=share)}
        raise InputError(
            f"recipe.effective_batch {effective_batch} is no multiple of {processes} processes x "
            f"data.init_args.batch_size {batch_size}: take a batch size of {' or '.join(map(str, sorted(near)))}"
        )
    if configured not in (1, share // batch_size):
        raise InputError(
            f"trainer.accumulate_grad_batches {configured} makes {at_once * configured} samples a step and "
            f"recipe.effective_batch says {effective_batch}: leave the first out, or set the second to 0"
        )
    return share // batch_size


def scheduled_lr(
    done: float,
    warmup: float,
    total: float,
    peak: float,
    floor: float = 0.0,
    schedule: Schedule = "cosine",
    decay_share: float = 0.1,
) -> float:
    """Learning rate after a part of a run: from 0 up to `peak` in a straight line, and in the end down to `floor`.

    `done`, `warmup` and `total` have one unit: steps, seconds, or shares of the whole run. See `Recipe` for the rest.
    """
    if done < warmup:
        return peak * done / warmup
    top = max(warmup, (1 - decay_share) * total) if schedule == "trapezoid" else warmup
    progress = min(1.0, max(0.0, done - top) / (total - top)) if total > top else float(done >= total)
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return floor + (peak - floor) * left
