"""Checkpoints of a run: written whole or not at all, read without running code, and always one of the very end."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from bamboo.errors import InputError, unknown
from bamboo.files import atomic_write, link, read_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, each complete on the disk before it takes its name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside `path`, then move into place: a process killed half-way leaves the old file."""
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values on the CPU. Raises `InputError` for a file that is no checkpoint of a run."""
        content = read_file(path)
        if "state_dict" not in content:
            raise InputError(f"{path} is no checkpoint of a run: it holds a model alone, as bamboo export writes it")
        return content


class Checkpoints(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which writes a step once, and `last` also at the end of a run.

    Where a step goes by two names (`last.ckpt`, and one that is kept or is among the best), the second is a hard link,
    which outlives the first: whatever is deleted later, each name is a whole checkpoint.

    Args:
        keep_every_n_epochs: keep a checkpoint for good every so many epochs, as `epoch=N.ckpt`; 0 for none.
        monitor: a metric of validation, of whose best value so far `best.ckpt` is kept.
        mode: whether the least or the largest value is best; by default the least of a loss, the largest of others.
        options: of Lightning's `ModelCheckpoint`.
    """

    def __init__(
        self,
        keep_every_n_epochs: int = 0,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.metric, self.best = monitor, math.nan
        self.sign = -1 if (mode or ("min" if "loss" in (monitor or "") else "max")) == "min" else 1
        if keep_every_n_epochs < 0:
            raise InputError(f"checkpoint.keep_every_n_epochs must be 0 or more: {keep_every_n_epochs}")
        self.keep_every_n_epochs = keep_every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due, and then what is kept for good."""
        super().on_train_epoch_end(trainer, pl_module)
        epochs = trainer.current_epoch + 1
        if self.keep_every_n_epochs and epochs % self.keep_every_n_epochs == 0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            assert self.dirpath is not None
            self._save_checkpoint(trainer, str(Path(self.dirpath) / f"epoch={epochs}{self.FILE_EXTENSION}"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due, and `best.ckpt` where the metric is better than ever.

        Raises:
            InputError: where validation has no such metric.
        """
        super().on_validation_end(trainer, pl_module)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self.metric is None or not fitting or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.metric not in trainer.callback_metrics:
            raise unknown("checkpoint.monitor", self.metric, trainer.callback_metrics)
        value = float(trainer.strategy.broadcast(trainer.callback_metrics[self.metric]))
        if math.isfinite(value) and not self.sign * value <= self.sign * self.best:
            assert self.dirpath is not None
            self.best, self.best_model_path = value, str(Path(self.dirpath) / f"best{self.FILE_EXTENSION}")
            self._save_checkpoint(trainer, self.best_model_path)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the best value so far."""
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        super().load_state_dict(state_dict)
        self.best = state_dict.get("best", math.nan)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `last`, wherever between two regular checkpoints the run ended."""
        if self.save_last and trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Write the file, or link it to the one that this step has already."""
        written = self._last_checkpoint_saved
        if not written or self._last_global_step_saved != trainer.global_step:
            super()._save_checkpoint(trainer, filepath)
        elif trainer.is_global_zero and filepath != written:
            link(written, filepath)
        trainer.strategy.barrier()
