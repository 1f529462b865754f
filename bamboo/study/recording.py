"""What a study records while a cell trains: its start, and what a step costs."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

TIMED = 5
"""Every so many steps one is timed, the second step of training first."""


class StudyRecord(Callback):
    """Saves the untrained model as `start.ckpt` in a folder, and keeps in the checkpoint what a step costs.

    The memory of a step is counted, not sampled: the bytes of the tensors that the first step's forward pass keeps for
    the backward pass.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seconds: dict[int, float] = {}
        self.activation_bytes = 0
        self._counting = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far, so that a resumed run goes on with it."""
        return {"seconds": self.seconds, "activation_bytes": self.activation_bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an interrupted run recorded."""
        self.seconds, self.activation_bytes = state_dict["seconds"], state_dict["activation_bytes"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the start."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.folder / "start.ckpt")

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
        """Stop the clock."""
        step = trainer.global_step - 1
        if step % TIMED == 1 and hasattr(self, "_since"):
            _wait(pl_module.device)
            self.seconds[step] = time.perf_counter() - self._since

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hooks behind: the process goes on with other cells."""
        self._counting.close()

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


def read_record(checkpoint: Mapping[str, Any]) -> tuple[dict[int, list[float]], int, dict[str, float]]:
    """What training left in a checkpoint: similarity by step and layer, bytes kept in a step, and costs."""
    callbacks = checkpoint["callbacks"]
    looks, record = callbacks["SimilarityMonitor"], callbacks["StudyRecord"]
    similarity = {
        step: [round(value, 6) for value in layers]
        for step, layers in zip(looks["steps"], looks["history"], strict=True)
    }
    seconds = record["seconds"].values()
    return similarity, record["activation_bytes"], {"step_seconds": median(seconds)} if seconds else {}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
