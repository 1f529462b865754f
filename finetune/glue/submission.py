"""Predictions for GLUE's test sets in the form in which gluebenchmark.com takes them."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .tasks import DIAGNOSTIC, TASKS, Task

HEADER = ("index", "prediction")
_SUFFIXES = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}
_MOMENT = (1980, 1, 1, 0, 0, 0)  # equal predictions make equal files


def file_name(task: Task, split: str) -> str:
    """What a submission calls the predictions of a test set: `CoLA.tsv`, `MNLI-mm.tsv`."""
    return f"{task.title}{_SUFFIXES[split]}.tsv"


FILES: dict[str, tuple[Task, str]] = {
    file_name(task, split): (task, split) for task in (*TASKS.values(), DIAGNOSTIC) for split in task.test_splits
}


def write_submission(
    predictions: Mapping[tuple[Task, str], tuple[Sequence[int | str], Sequence[int] | Sequence[float]]], folder: Path
) -> Path:
    """Write `submission.zip`: one file of tab-separated `index` and `prediction` for every test set, without folders.

    The benchmark's server takes all files or none: what is not whole, or fails `check_submission`, is not written.

    The predictions of MNLI, QNLI and RTE are written as words, those of the other classes as 0 and 1, and those of
    STS-B, brought between 0 and 5, with three decimals.

    Args:
        predictions: by task and test split: the ids that `read_split` gave, and the ids of classes or similarities,
            in the order of the test set. Those of MNLI's model on `DIAGNOSTIC` belong to them.
        folder: where to write; it is made if missing.

    Returns:
        The path of the file.

    Raises:
        InputError: for a test set that is missing or has not its official rows, a prediction that is no class of the
            task or not finite, or where the file cannot be written.
    """
    path = folder / "submission.zip"
    files = {file_name(*key): _lines(key[0], *content) for key, content in predictions.items()}
    if missing := [name for name in FILES if name not in files]:
        raise InputError(f"a submission is whole or refused: {', '.join(missing)} missing")
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(files, key=list(FILES).index):
            info = zipfile.ZipInfo(name, _MOMENT)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, "".join(f"{index}\t{value}\n" for index, value in (HEADER, *files[name])))
        archive.close()
        check_submission(temporary, str(path))
    return path


def check_submission(path: str | Path, name: str | None = None) -> str:
    """Check that a zipped submission is whole and has the benchmark's format and official numbers of rows.

    Args:
        path: the zip file.
        name: what to call it.

    Returns:
        One line: the files and rows it has.

    Raises:
        InputError: for the first fault, with file and line.
    """
    place = name or str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{place} is missing or no zip file") from error
    rows = sum(_check_file(f"{place}: {name}", name, content) for name, content in contents.items())
    if missing := [name for name in FILES if name not in contents]:
        raise InputError(f"{place}: {', '.join(missing)} missing")
    return f"{place}: {len(contents)} files, {rows:,} predictions"


def _lines(task: Task, ids: Sequence[int | str], values: Sequence[int] | Sequence[float]) -> list[tuple[str, str]]:
    if len(ids) != len(values):
        raise InputError(f"{task.title}: {len(values)} predictions for {len(ids)} rows of the test set")
    return [(str(index), _word(task, value, index)) for index, value in zip(ids, values, strict=True)]


def _word(task: Task, value: float, index: int | str) -> str:
    if task.is_regression and math.isfinite(value):
        return f"{min(max(float(value), 0.0), 5.0):.3f}"
    if task.is_regression or value not in range(len(task.codes)):
        expected = "a finite number" if task.is_regression else f"a class from 0 to {len(task.codes) - 1}"
        raise InputError(f"{task.title}: the prediction for row {index} is {value}: expected {expected}")
    return task.codes[int(value)]


def _check_file(place: str, name: str, content: bytes) -> int:
    if name not in FILES:
        raise InputError(f"{place}: no file of a submission, which are {', '.join(FILES)}, without folders")
    task, split = FILES[name]
    try:
        header, *lines = content.decode().splitlines() or [""]
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 text") from error
    if header != "\t".join(HEADER):
        raise InputError(f"{place}:1: expected the header {' '.join(HEADER)}, separated by a tab")
    for row, line in enumerate(lines):
        index, _, word = line.partition("\t")
        if index != str(row):
            raise InputError(f"{place}:{row + 2}: expected the index {row}, got {index!r}")
        if not _is_prediction(task, word):
            expected = "a number from 0 to 5" if task.is_regression else " or ".join(task.codes)
            raise InputError(f"{place}:{row + 2}: the prediction is {word!r}: expected {expected}")
    if len(lines) != task.rows[split]:
        raise InputError(f"{place}: {len(lines):,} predictions, the test set has {task.rows[split]:,}")
    return len(lines)


def _is_prediction(task: Task, word: str) -> bool:
    if not task.is_regression:
        return word in task.codes
    try:
        return 0 <= float(word) <= 5
    except ValueError:
        return False
