"""Predictions for GLUE's test sets in the form in which gluebenchmark.com takes them."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .tasks import DIAGNOSTIC, TASKS, Task

SUFFIXES = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}
FILES: dict[str, tuple[Task, str]] = {
    f"{task.title}{SUFFIXES[split]}.tsv": (task, split)
    for task in (*TASKS.values(), DIAGNOSTIC)
    for split in task.test_splits
}
"""The task and test set of each file of a submission, by its name."""


def write_submission(
    predictions: Mapping[tuple[Task, str], tuple[Sequence[int | str], Sequence[int] | Sequence[float]]], folder: Path
) -> Path:
    """Write `submission.zip`: one file of tab-separated `index` and `prediction` for every test set, without folders.

    The benchmark's server takes all files or none, so all are checked before anything is written. The predictions of
    MNLI, QNLI and RTE are written as words, those of the other classes as 0 and 1, and those of STS-B, brought between
    0 and 5, with three decimals.

    Args:
        predictions: by task and test split: the ids that `read_split` gave, and the ids of classes or similarities,
            in the order of the test set. Those of MNLI's model on `DIAGNOSTIC` belong to them.
        folder: where to write; it is made if missing.

    Raises:
        InputError: for a test set that is missing or has not its official rows, a prediction that is no class of the
            task or not finite, or where the file cannot be written.
    """
    if missing := [name for name, key in FILES.items() if key not in predictions]:
        raise InputError(f"a submission is whole or refused: {', '.join(missing)} missing")
    texts = {name: _content(name, *predictions[key]) for name, key in FILES.items()}
    path = folder / "submission.zip"
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, text in texts.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # equal predictions make equal files
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, text)
    return path


def _content(name: str, ids: Sequence[int | str], values: Sequence[int] | Sequence[float]) -> str:
    task, split = FILES[name]
    if not len(ids) == len(values) == task.rows[split]:
        counts = f"{len(values):,} predictions for {len(ids):,} rows"
        raise InputError(f"{name}: {counts}, and the official test set has {task.rows[split]:,}")
    lines = ["index\tprediction"]
    for row, (index, value) in enumerate(zip(ids, values, strict=True)):
        if str(index) != str(row):
            raise InputError(f"{name}: row {row} of the test set has the index {index}: rows are numbered from 0")
        lines.append(f"{row}\t{_word(task, value, row)}")
    return "\n".join((*lines, ""))


def _word(task: Task, value: float, row: int) -> str:
    if task.is_regression and math.isfinite(value):
        return f"{min(max(float(value), 0.0), 5.0):.3f}"
    if task.is_regression or value not in range(len(task.codes)):
        expected = "a finite number" if task.is_regression else f"a class from 0 to {len(task.codes) - 1}"
        raise InputError(f"{task.title}: the prediction for row {row} is {value}: expected {expected}")
    return task.codes[int(value)]
