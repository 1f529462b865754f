"""Examples of a GLUE task, or of one's own, from whatever holds them."""

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bamboo.errors import InputError, unknown

from .formats import Table, read_hub, read_json_lines, read_parquet, read_saved, read_table
from .tasks import Task, plain

log = logging.getLogger(__name__)

READERS: tuple[tuple[str, Callable[[Path, Mapping[str, str]], Table]], ...] = (
    ("{}-*.parquet", read_parquet),
    ("{}.parquet", read_parquet),
    ("{}/*.parquet", read_parquet),
    ("{}.jsonl", read_json_lines),
    ("{}.json", read_json_lines),
    ("{}/state.json", read_saved),
)
"""The files that a split of the Hugging Face data set may be in, by its name."""


class MissingData(InputError):
    """There is no file of a split at all."""


class Examples(NamedTuple):
    """One split of a task, in the order of the file.

    Args:
        first: the sentence, or the first of a pair.
        second: the second of a pair, or None.
        labels: ids of the classes, or similarities from 0 to 5; None where they are not known.
        ids: what the file calls the rows, which submissions repeat; their positions where it does not number them.
    """

    first: list[str]
    second: list[str] | None
    labels: list[int] | list[float] | None
    ids: list[int | str]


def read_split(task: Task, data: str | Path, split: str) -> Examples:
    """Read one split of a task, and warn once where its number of rows is not the official one.

    Layouts: the official download; Parquet or JSON lines with the columns of the Hugging Face data set; folders that
    `datasets`' `save_to_disk` has written; the hub.

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
    tables = _find(task, data, split)
    examples = _examples(task, tables)
    if len(examples.first) != task.rows[split]:
        place, official = tables[0].path.parent, f"the official set has {task.rows[split]:,}"
        _warn_once(f"{task.title} {split}: {len(examples.first):,} rows in {place}, {official}")
    return examples


def read_texts(task: Task, path: Path, text: str, pair: str | None, label: str | None) -> Examples:
    """Read texts of one's own, from a file of tab- or comma-separated values with a header, or of JSON lines.

    Tabs separate as in GLUE's files, in which quotes are letters; commas as in those of a spreadsheet.

    Args:
        task: with the names of the classes.
        path: a .tsv, .csv, .jsonl or .json file.
        text: column of the text.
        pair: column of the second of a pair of texts.
        label: column of the names of the classes; None where there is none.

    Raises:
        InputError: for what is missing or malformed, with file and line.
    """
    columns = {"first": text, "second": pair, "label": label}
    names = {use: name for use, name in columns.items() if name is not None}
    if not path.is_file() or path.suffix not in (".tsv", ".csv", ".jsonl", ".json"):
        raise InputError(f"{path} is {'of another kind' if path.exists() else 'missing'}: give a .tsv, .csv or .jsonl")
    return _examples(task, [read_json_lines(path, names) if "json" in path.suffix else read_table(path, names)])


def _find(task: Task, data: str | Path, split: str) -> list[Table]:
    """The tables of a split, in whichever layout it is there."""
    root, hub_split = Path(data).expanduser(), split.replace("dev", "validation")
    names = _names((*task.texts, "label"), split)
    if not root.is_dir():
        if root.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(data)):
            raise InputError(f"{data} is no folder: give the folder of the GLUE download, with {task.folder}/ in it")
        _warn_once(
            f"{data} is no folder here: loading the data set of that name from the Hugging Face hub or its cache "
            "(without a network this takes up to a minute to fail; HF_HUB_OFFLINE=1 fails at once)"
        )
        return [read_hub(str(data), task.name, hub_split, names)]
    folder = _task_folder(task, root)
    test = split.startswith("test")
    for stem in (split,) if "train" in task.rows else (task.folder, task.title):
        if (path := folder / f"{stem}.tsv").is_file():
            header, skip_short = ((), False) if test else (task.header, task.ragged)
            return [read_table(path, _names(task.columns, split), header, skip_short)]
    for stem in dict.fromkeys((hub_split, split)):
        for pattern, read in READERS:
            if paths := sorted(folder.glob(pattern.format(stem))):
                return [read(path, names) for path in paths]
    tsv = f"{split}.tsv" if "train" in task.rows else f"{task.folder}.tsv"
    looked = f"looked for {tsv}, {hub_split}-*.parquet, {hub_split}.jsonl and a data set saved as {hub_split}/"
    raise MissingData(f"{folder}: no {task.title} {split} data there: {looked}")


def _task_folder(task: Task, root: Path) -> Path:
    names = {task.name, plain(task.folder)}
    for path in (*sorted(root.iterdir()), root.resolve()):
        if path.is_dir() and plain(path.name) in names:
            return root if path == root.resolve() else path
    raise MissingData(f"{root}: no folder {task.folder}/ or {task.name}/ there, which holds the data of {task.title}")


def _names(columns: tuple[str, ...], split: str) -> dict[str, str]:
    """Columns by what they are for; test sets have no labels, or none that say anything."""
    *texts, label = columns
    names = dict(zip(("first", "second"), texts, strict=False))
    return names if split.startswith("test") else {**names, "label": label}


def _examples(task: Task, tables: Sequence[Table]) -> Examples:
    columns: dict[str, list[Any]] = {}
    for table in tables:
        for use in table.rows:
            columns.setdefault(use, []).extend(_column(task, table, use))
    count = len(columns["first"])
    if not count:
        raise InputError(f"{tables[0].path} is empty: expected rows of {task.title}")
    ids = columns["id"] if len(columns.get("id", ())) == count else list(range(count))
    return Examples(columns["first"], columns.get("second"), columns.get("label"), ids)


def _column(task: Task, table: Table, use: str) -> list[Any]:
    """The values of a column as `Examples` has them. Raises `InputError` for the first that cannot be."""
    if use == "id":
        return [int(value) if str(value).isdecimal() else str(value) for value in table.rows[use]]
    convert: Callable[[Any], Any]
    if use != "label":
        word, expected = f"{use} text", "a string"
        convert = _text
    elif task.is_regression:
        word, expected = "label", "a number from 0 to 5"
        convert = _similarity
    else:
        word, expected = "label", " or ".join(dict.fromkeys((*task.codes, *task.labels)))
        numbers = {name: number for names in (task.labels, task.codes) for number, name in enumerate(names)}
        convert = functools.partial(_class, numbers=numbers, order=table.class_names or task.labels)
    converted = [convert(value) for value in table.rows[use]]
    if None in converted:
        row = converted.index(None)
        place, value = table.place(table.rows.index[row]), table.rows[use].tolist()[row]
        raise InputError(f"{place}: the {word} is {value!r}: expected {expected}")
    return converted


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _similarity(value: Any) -> float | None:
    try:
        return float(value) if 0 <= float(value) <= 5 else None
    except (TypeError, ValueError):
        return None


def _class(value: Any, numbers: Mapping[str, int], order: Sequence[str]) -> int | None:
    """The number of a class by its name; a number counts the names in `order`, that of the file if it says one."""
    if isinstance(value, int) and 0 <= value < len(order):
        value = order[value]
    return numbers.get(value) if isinstance(value, str) else None


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, but not again when the same data are read again."""
    log.warning("%s", message)
