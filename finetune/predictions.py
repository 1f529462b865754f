"""`bamboo predict`: a CSV with a row for each image, or text."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bamboo.files import write_text
from bamboo.processes import of_all_processes


def in_order(parts: Sequence[Mapping[str, torch.Tensor]]) -> pd.DataFrame:
    """What the `predict_step`s of all processes say of a data set, sorted by the column `number`."""
    frames = [pd.DataFrame({name: value.cpu().numpy() for name, value in part.items()}) for part in parts]
    whole = pd.concat(frames) if frames else pd.DataFrame(columns=["number", "label", "predicted", "probability"])
    return pd.concat(of_all_processes(whole)).sort_values("number", ignore_index=True)


class PredictionWriter(Callback):
    """Writes what a `Classifier` predicts, in the order of the images, each of them once over all processes.

    Args:
        path: the CSV file; it appears complete or not at all.
    """

    def __init__(self, path: str = "predictions.csv") -> None:
        self.path = Path(path)
        self.parts: dict[int, list[Any]] = defaultdict(list)  # by data loader

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
        self.parts[dataloader_idx].append({name: value.cpu() for name, value in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes, and write."""
        table = self.table(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            write_text(self.path, table.to_csv(index=False, float_format="%.6f"))
            print(f"{len(table)} predictions in {self.path}")

    def table(self, data: Any, module: Any) -> pd.DataFrame:
        """A row for each image: file, label (empty where it is not known), and the predicted classes, likeliest first.

        A class has the model's name. A label has the model's name under a class map, else that of the data.
        """
        rows, source = in_order(self.parts[0]), data.predict_source()
        name = module.matching.name if getattr(data, "class_map", None) else data.classes.__getitem__
        rows["file"] = rows["number"].map(source.name)
        rows["label"] = rows["label"].map(lambda label: name(label) if label >= 0 else "")
        for column in (column for column in rows if column.startswith("predicted")):
            rows[column] = rows[column].map(lambda label: module.classes[label])
        others = sorted({*rows["label"]} - {*module.classes, ""})
        if others and module.trainer.is_global_zero:
            print(
                f"labels that are no class of the model: {', '.join(others[:3])}; data.init_args.class_map tells which"
            )
        return rows[["file", *(column for column in rows if column not in ("file", "number"))]]
