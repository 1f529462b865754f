"""What a study records while a cell trains: its start, its loss, and what a step costs."""

import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bamboo.analysis.monitor import SimilarityMonitor

from .courses import RECENT, Course, course_of

TIMED = 5
"""Every so many steps one is timed, the second step of training first."""


class StudyRecord(Callback):
    """Saves the untrained model as `start.ckpt` in a folder, and keeps in the checkpoint what a step costs.

    Behind a `SimilarityMonitor` it keeps the training loss at each of its looks too, and reads it there alone: the host
    does not wait for the device in other steps.

    The memory of a step is counted, not sampled: the bytes of the tensors that the first step's forward pass keeps for
    the backward pass.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seconds: dict[int, float] = {}
        self.activation_bytes = 0
        self.losses: dict[int, float] = {}
        self.flops = math.nan  # of an optimizer step
        self._recent: deque[Tensor] = deque(maxlen=RECENT)
        self._counting = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far, so that a resumed run goes on with it."""
        return {
            "seconds": self.seconds,
            "activation_bytes": self.activation_bytes,
            "losses": self.losses,
            "flops": self.flops,
            "recent": [*self._recent],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an interrupted run recorded."""
        self.seconds, self.activation_bytes = state_dict["seconds"], state_dict["activation_bytes"]
        self.losses = state_dict.get("losses", {})  # which earlier versions did not keep
        self._recent.extend(state_dict.get("recent", []))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the start, and count the FLOPs of a step."""
        self.flops = pl_module.effective_batch() * pl_module.flops_per_sample()  # type: ignore[operator]
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.folder / "start.ckpt", weights_only=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, or in the first step the count of bytes."""
        if not self.activation_bytes:
            self._count(pl_module)
        elif trainer.global_step % TIMED == 1:
            _wait(pl_module.device)
            self._since = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The forward pass is over: what is kept now is kept for the backward pass."""
        self._counting.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock, and keep the loss."""
        self._recent.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)  # by which Lightning divides it
        self._keep_loss(trainer)
        step = trainer.global_step - 1
        if step % TIMED == 1 and hasattr(self, "_since"):
            _wait(pl_module.device)
            self.seconds[step] = time.perf_counter() - self._since

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the loss of a look after the last step."""
        self._keep_loss(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hooks behind: the process goes on with other cells."""
        self._counting.close()

    def _keep_loss(self, trainer: Trainer) -> None:
        """Read the recent losses after a look of the monitor."""
        monitor = next((call for call in trainer.callbacks if isinstance(call, SimilarityMonitor)), None)  # type: ignore[attr-defined]
        if monitor and monitor.steps and (step := monitor.steps[-1]) not in self.losses:
            mean = torch.stack([loss.to(trainer.strategy.root_device) for loss in self._recent]).mean()
            self.losses[step] = float(trainer.strategy.reduce(mean, reduce_op="mean"))

    def _count(self, module: LightningModule) -> None:
        """Add up the storages that autograd saves, each once; weights are not counted, for they are there anyway."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        def finish() -> None:
            self.activation_bytes = sum(storages.values())

        self._counting.callback(finish)
        self._counting.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))


def read_record(checkpoint: Mapping[str, Any]) -> tuple[Course, int, dict[str, float]]:
    """What training left in a checkpoint: its course, bytes kept in a step, and costs."""
    callbacks = checkpoint["callbacks"]
    looks, record = callbacks["SimilarityMonitor"], callbacks["StudyRecord"]
    monitor = SimilarityMonitor()
    monitor.load_state_dict(looks)
    losses = [record.get("losses", {}).get(step, math.nan) for step in monitor.steps]
    flops = [record.get("flops", math.nan) * step for step in monitor.steps]
    course = course_of(monitor.steps, losses, flops, monitor.history)
    seconds = record["seconds"].values()
    return course, record["activation_bytes"], {"step_seconds": median(seconds)} if seconds else {}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
