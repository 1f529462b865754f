"""`bamboo predict` for texts: a CSV with a row for each text."""

from typing import Any

import pandas as pd

from bamboo.finetune.predictions import PredictionWriter, in_order


class TextPredictions(PredictionWriter):
    """Writes what a `GlueClassifier` predicts: the split and id of each text, its class by name, and its probability.

    Args:
        path: the CSV file; it appears complete or not at all.
    """

    def table(self, data: Any, module: Any) -> pd.DataFrame:
        """A row for each text of all test splits; a similarity has no probability."""
        tables = []
        for number, (name, ids) in enumerate(zip(data.test_names, data.predict_source(), strict=True)):
            rows = in_order(self.parts[number])
            if module.task.labels:
                rows["predicted"] = rows["predicted"].map(lambda label: module.task.labels[int(label)])
            else:
                rows["probability"] = ""
            tables.append(rows.assign(split=name, id=ids)[["split", "id", "predicted", "probability"]])
        return pd.concat(tables)
