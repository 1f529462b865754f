"""The clock of a run that time ends: the first process's, for all."""

from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import distributed


def find_timer(trainer: Trainer) -> Timer | None:
    """The callback that ends a run by its time, `trainer.max_time` for example."""
    timers = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    return next((timer for timer in timers if timer.time_remaining() is not None), None)


class Clock(Timer):
    """Lightning's timer, read once per optimizer step by the first process, for all.

    Lightning's own sends a pickled object in every batch, for which the host waits for a GPU. Here processes exchange a
    number, from CPU to CPU. When the time is up, the step that starts is the last one.
    """

    share = 0.0
    """Of the time that is allowed, what had gone when the step started: the same number on all processes."""

    @classmethod
    def like(cls, timer: Timer) -> "Clock":
        """A clock that allows as much time as a timer does."""
        return cls(timedelta(seconds=timer.time_elapsed() + (timer.time_remaining() or 0.0)))

    @property
    def state_key(self) -> str:
        """As Lightning's, so that checkpoints of runs with the one go on with the other."""
        return Timer.__qualname__

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, with a channel between the processes' CPUs."""
        super().on_train_start(trainer, pl_module)
        self._step = -1
        self._channel: Any = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the time, in the first of accumulated batches."""
        if trainer.global_step == self._step:
            return
        self._step, elapsed = trainer.global_step, self.time_elapsed()
        self.share = elapsed / (elapsed + (self.time_remaining() or 0.0))
        if self._channel is not None:
            agreed = torch.tensor(self.share, dtype=torch.float64)
            distributed.broadcast(agreed, src=0, group=self._channel)
            self.share = agreed.item()
        # Said at the start of the last step, so that its own numbers are logged.
        trainer.should_stop = trainer.should_stop or self.share >= 1

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Nothing: the end was agreed on when the step started."""
