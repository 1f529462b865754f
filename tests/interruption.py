"""Ends a run in the middle: by an exception, or as if the power had failed."""

import os
import signal
from typing import Any

import torch
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


class SpoilBefore(Callback):
    """Writes a NaN into a weight before a step."""

    def __init__(self, step: int, name: str = "encoder.blocks.1.mlp.fc1.weight") -> None:
        self.step, self.name = step, name

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.get_parameter(f"mae.{self.name}").view(-1)[0] = float("nan")


class SaveGradients(Callback):
    """Saves the gradients of the first step, the mean over all processes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:
            torch.save({n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}, self.path)
