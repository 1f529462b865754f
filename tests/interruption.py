"""Ends a run in the middle: by an exception, or as if the power had failed."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Interruption(Exception):
    """The run was interrupted on purpose."""


class InterruptBefore(Callback):
    """Ends the run before a step, by the signal `kill -9` if asked to."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Interruption
