"""Examples of a GLUE task, from whatever holds them."""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bamboo.errors import InputError, unknown

from .layouts import find_tables
from .tables import Table, warn_once
from .tasks import Task


class Examples(NamedTuple):
    """One split of a task, in the order of the file.

    Args:
        first: the sentence, or the first of a pair.
        second: the second of a pair, or None.
        labels: ids of the classes, or similarities from 0 to 5; None for a test set.
        ids: what the file calls the rows, which submissions repeat; their positions where it does not number them.
    """

    first: list[str]
    second: list[str] | None
    labels: list[int] | list[float] | None
    ids: list[int | str]


def read_split(task: Task, data: str | Path, split: str) -> Examples:
    """Read one split of a task, and warn once where its number of rows is not the official one.

    Layouts: the official download; the own releases of CoLA and MRPC in its place; Parquet or JSON lines with the
    columns of the Hugging Face data set; folders that `datasets`' `save_to_disk` has written; the hub.

    Args:
        task: of GLUE.
        data: the folder that holds a folder for each task, or the folder of this task, or the name of a data set on
            the Hugging Face hub, such as `nyu-mll/glue`.
        split: a key of `task.rows`: `train`, `dev`, `test`, and for MNLI `dev_matched` and so on.

    Raises:
        InputError: for what is missing or malformed, with file and line.
    """
    if split not in task.rows:
        raise unknown(f"split of {task.title}", split, task.rows)
    tables = find_tables(task, data, split)
    first = _texts(tables, "first")
    if not first:
        raise InputError(f"{tables[0].path} is empty: expected rows of {task.title}")
    if len(first) != task.rows[split]:
        official = f"the official set has {task.rows[split]:,}"
        warn_once(f"{task.title} {split}: {len(first):,} rows in {tables[0].path.parent}, {official}")
    second = _texts(tables, "second") if len(task.texts) == 2 else None
    return Examples(first, second, None if split in task.test_splits else _labels(task, tables), _ids(tables))


def _texts(tables: Sequence[Table], use: str) -> list[str]:
    for table in tables:
        for row, text in enumerate(table.columns.get(use, ())):
            if not isinstance(text, str):
                raise InputError(f"{table.place(row)}: the {use} text is {text!r}: expected a string")
    return list(chain.from_iterable(table.columns.get(use, ()) for table in tables))


def _ids(tables: Sequence[Table]) -> list[int | str]:
    if not all("id" in table.columns for table in tables):
        return list(range(sum(len(table.columns["first"]) for table in tables)))
    values = chain.from_iterable(table.columns["id"] for table in tables)
    return [int(value) if str(value).isdecimal() else str(value) for value in values]


def _labels(task: Task, tables: Sequence[Table]) -> list[int] | list[float]:
    if task.is_regression:
        return [_score(value, table, row) for table in tables for row, value in enumerate(table.columns["label"])]
    known = {name: number for names in (task.labels, task.codes) for number, name in enumerate(names)}
    return [
        _class_id(value, known, task, table, row)
        for table in tables
        for row, value in enumerate(table.columns["label"])
    ]


def _class_id(value: Any, known: dict[str, int], task: Task, table: Table, row: int) -> int:
    """The id of a label; a number is one already, unless the file says that its classes have another order."""
    label = value
    if isinstance(value, int):
        names = table.class_names or task.labels
        label = names[value] if 0 <= value < len(names) else None
    if not isinstance(label, str) or label not in known:
        choices = " or ".join(dict.fromkeys((*task.codes, *task.labels)))
        raise InputError(f"{table.place(row)}: unknown label {value!r}: expected {choices}")
    return known[label]


def _score(value: Any, table: Table, row: int) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 5:
        raise InputError(f"{table.place(row)}: the label is {value!r}: expected a number from 0 to 5")
    return score
