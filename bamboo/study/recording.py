"""What a study records while a cell trains: its start, how alike tokens grow, and what a step costs."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bamboo.analysis.monitor import find_encoder
from bamboo.analysis.profiling import profile

TIMED = 5
"""Every so many steps one is timed, the second step of training first."""


class StudyRecord(Callback):
    """Saves the untrained model, and keeps in the checkpoint what the report shows of the course of training.

    Similarity is that of whole held-out samples, whatever the objective masks in training. The memory of a step is
    counted, not sampled: the bytes of the tensors that the first step's forward pass keeps for the backward pass.

    Args:
        folder: where `start.ckpt` goes.
        points: how often similarity is looked at, the start included.
        samples: held-out samples that it is looked at on.
    """

    def __init__(self, folder: str, points: int = 8, samples: int = 64) -> None:
        self.folder, self.points, self.samples = Path(folder), points, samples
        self.similarity: dict[int, list[float]] = {}
        self.losses: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        self.activation_bytes = 0
        self._counting: saved_tensors_hooks | None = None

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far, so that a resumed run goes on with it."""
        names = ("similarity", "losses", "seconds", "activation_bytes")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the start, and decide when to look."""
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.folder / "start.ckpt")
        self.total = int(trainer.estimated_stepping_batches)
        self.every = max(self.total // self.points, 1)
        self.samples_seen = list(_batches(trainer, self.samples))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at held-out samples if it is time to; then start the clock, or the count of bytes."""
        step = trainer.global_step
        if step % self.every == 0 and step not in self.similarity:
            self.similarity[step] = self._look(trainer, pl_module)
        if not self.activation_bytes:
            self._count(pl_module)
        elif step % TIMED == 1:
            _wait(pl_module.device)
            self._since = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The forward pass is over: what is kept now is kept for the backward pass."""
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None
            self.activation_bytes = sum(self._storages.values())
            del self._storages

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; keep the loss of some steps; after the last one look once more."""
        step = trainer.global_step - 1
        if step % TIMED == 1 and hasattr(self, "_since"):
            _wait(pl_module.device)
            self.seconds[step] = time.perf_counter() - self._since
        if step % TIMED == 0 and isinstance(outputs, Mapping) and "loss" in outputs:
            self.losses[step] = float(outputs["loss"])
        if trainer.global_step == self.total and self.total not in self.similarity:
            self.similarity[self.total] = self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: LightningModule) -> list[float]:
        batches = [_standardised(module, batch) for batch in self.samples_seen]
        found = profile(find_encoder(module), batches, ["token_similarity"], samples=self.samples)
        return [round(value, 6) for value in found.curve().mean.tolist()]

    def _count(self, module: LightningModule) -> None:
        """Add up the storages that autograd saves, each once; weights are not counted, for they are there anyway."""
        own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self._storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._counting = saved_tensors_hooks(pack, lambda tensor: tensor)
        self._counting.__enter__()


def read_record(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a `StudyRecord` left in a checkpoint, with the median time of a step."""
    kept = next(state for name, state in checkpoint["callbacks"].items() if name.startswith(StudyRecord.__name__))
    return {**kept, "cost": {"step_seconds": median(kept["seconds"].values())} if kept["seconds"] else {}}


def _batches(trainer: Trainer, samples: int) -> Iterator[Any]:
    """The first held-out samples, evenly spread where the data can do that."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader = data.probe_loaders(samples)[1] if hasattr(data, "probe_loaders") else data.val_dataloader()
    seen = 0
    for batch in loader:
        yield batch
        seen += len(next(value for value in batch.values() if isinstance(value, Tensor)))
        if seen >= samples:
            return


def _standardised(module: Any, batch: Any) -> Any:
    """Images as the module standardises them; texts as they are."""
    return module.pixels(batch["image"].to(module.device)) if "image" in batch else batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
