"""Checkpoints of a run: written whole or not at all, read without running code, and always one of the very end."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from bamboo.files import atomic_write, read_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each complete on the disk before it takes its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside `path`, then move into place: a process killed half-way leaves the old file."""
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values on the CPU. Raises `InputError` for a file that is cut short or holds code."""
        return read_file(path)


class Checkpoints(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, of which `last` is also written at the end of a run."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `last`, wherever between two regular checkpoints the run ended."""
        if self.save_last and self._last_global_step_saved != trainer.global_step:
            self._last_global_step_saved = trainer.global_step
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
