"""`bamboo predict`: a CSV with a row for each image."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from bamboo.files import atomic_write

COLUMNS = ("file", "label", "predicted", "probability")
"""The columns of the file; a label is empty where it is not known."""


class PredictionWriter(Callback):
    """Writes what a `Classifier` predicts, in the order of the images, each of them once over all processes.

    Args:
        path: the CSV file; it appears complete or not at all.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        self.path = Path(path)
        self.parts: list[dict[str, torch.Tensor]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self.parts = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the numbers of a batch."""
        self.parts.append({name: tensor.cpu() for name, tensor in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes, and write."""
        names = ("number", "label", "predicted", "probability")
        columns = [torch.cat([part[name] for part in self.parts]).tolist() for name in names]
        rows = list(zip(*columns, strict=True))
        if distributed.is_available() and distributed.is_initialized():
            gathered: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero:
            self._write(sorted(rows), trainer.datamodule, pl_module.classes)  # type: ignore[attr-defined]
            print(f"{len(rows)} predictions in {self.path}")

    def _write(self, rows: list[Any], data: Any, classes: Any) -> None:
        source, labels = data.predict_source(), data.classes
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for number, label, predicted, probability in rows:
                known = labels[label] if label >= 0 else ""
                table.writerow([source.name(number), known, classes[predicted], f"{probability:.6f}"])
