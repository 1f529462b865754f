"""`bamboo predict` for texts: a CSV with a row for each text."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from bamboo.files import atomic_write

from .classifier import GlueClassifier, in_order


class TextPredictions(Callback):
    """Writes what a `GlueClassifier` predicts: the split and id of each text, its class by name, and its probability.

    Args:
        path: the CSV file; it appears complete or not at all.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        self.path = Path(path)
        self.parts: dict[int, list[Any]] = defaultdict(list)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self.parts.clear()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the predictions of a batch."""
        self.parts[dataloader_idx].append(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes, and write."""
        assert isinstance(pl_module, GlueClassifier)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tables = []
        for number, (name, ids) in enumerate(zip(data.test_names, data.predict_source(), strict=True)):
            rows = in_order(self.parts[number])
            if pl_module.task.labels:
                rows["predicted"] = [pl_module.task.labels[int(label)] for label in rows["predicted"]]
            else:
                rows["probability"] = ""
            tables.append(rows.assign(split=name, id=ids)[["split", "id", "predicted", "probability"]])
        if trainer.is_global_zero:
            table = pd.concat(tables)
            with atomic_write(self.path) as temporary:
                table.to_csv(temporary, index=False, float_format="%.6f")
            print(f"{len(table)} predictions in {self.path}")
