"""Examples of a GLUE task, or of one's own, from whatever holds them."""

import csv
import functools
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bamboo.errors import InputError, unknown

from .tasks import Task, plain

log = logging.getLogger(__name__)

ID_COLUMNS = ("index", "id", "idx")


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


class Table(NamedTuple):
    """Rows of one file.

    Args:
        path: the file, for messages.
        rows: columns `first`, `second`, `label`, and `id` where the file numbers its rows; its index is the line of
            each row, or its number, from 1.
        class_names: names of the classes, in the order of their ids, where the file says them.
    """

    path: Path
    rows: pd.DataFrame
    class_names: Sequence[str] = ()

    def place(self, row: Any) -> str:
        """Where a row is, for messages: `FILE:LINE`, or `FILE, row N`."""
        return f"{self.path}:{row}" if self.path.suffix in LINES else f"{self.path}, row {row}"


LINES = (".tsv", ".csv", ".txt", ".json", ".jsonl")


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
    root = Path(data).expanduser()
    hub_split = split.replace("dev", "validation")
    names = _names((*task.texts, "label"), split)
    if not root.is_dir():
        if root.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(data)):
            raise InputError(f"{data} is no folder: give the folder of the GLUE download, with {task.folder}/ in it")
        return [read_hub(str(data), task.name, hub_split, names)]
    folder = _task_folder(task, root)
    if tables := _official(task, folder, split):
        return tables
    for stem in dict.fromkeys((hub_split, split)):
        for pattern, read in READERS:
            if paths := sorted(folder.glob(pattern.format(stem))):
                return [read(path, names) for path in paths]
    tsv = f"{split}.tsv" if "train" in task.rows else f"{task.folder}.tsv"
    looked = f"looked for {tsv}, {hub_split}-*.parquet, {hub_split}.jsonl and a data set saved as {hub_split}/"
    raise MissingData(f"{folder}: no {task.title} {split} data there: {looked}")


def _task_folder(task: Task, root: Path) -> Path:
    names = {task.name, plain(task.folder)}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and plain(path.name) in names)
    if folders:
        return folders[0]
    if plain(root.resolve().name) in names:
        return root
    raise MissingData(f"{root}: no folder {task.folder}/ or {task.name}/ there, which holds the data of {task.title}")


def _names(columns: tuple[str, ...], split: str) -> dict[str, str]:
    """Columns by what they are for; test sets have no labels, or none that say anything."""
    *texts, label = columns
    names = dict(zip(("first", "second"), texts, strict=False))
    return names if split.startswith("test") else {**names, "label": label}


def _official(task: Task, folder: Path, split: str) -> list[Table]:
    """The benchmark's own files, or those that CoLA and MRPC were released as."""
    test, names = split.startswith("test"), _names(task.columns, split)
    stems = (split,) if "train" in task.rows else (task.folder, task.title)
    paths = [path for stem in stems if (path := folder / f"{stem}.tsv").is_file()][:1]
    if not paths and task.name == "cola":
        # GLUE's dev set is that of the release, first in-domain and then out-of-domain.
        parts = {"train": ["in_domain_train"], "dev": ["in_domain_dev", "out_of_domain_dev"]}.get(split, [])
        places = [folder, folder / "raw", folder / "original" / "raw"]
        whole = ([place / f"{part}.tsv" for part in parts] for place in places)
        paths = next((files for files in whole if all(file.is_file() for file in files)), [])
    if not paths and task.name == "mrpc":
        return _mrpc_release(folder, split, names)
    return [read_table(path, names, () if test else task.header, task.ragged and not test) for path in paths]


def _mrpc_release(folder: Path, split: str, names: Mapping[str, str]) -> list[Table]:
    """The text files of MRPC's own release, whose training part `dev_ids.tsv` divides into GLUE's train and dev."""
    path = folder / f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"
    if not path.is_file() or split == "test":
        return [read_table(path, names)] if path.is_file() else []
    ids = next((file for name in ("dev_ids.tsv", "mrpc_dev_ids.tsv") if (file := folder / name).is_file()), None)
    if ids is None:
        raise InputError(f"{folder}: no dev_ids.tsv there, which says what rows of {path.name} are the dev set")
    pair = {"one": "#1 ID", "two": "#2 ID"}
    table, dev = read_table(path, {**names, **pair}), read_table(ids, pair, tuple(pair.values())).rows
    keys = pd.MultiIndex.from_frame(table.rows[list(pair)])
    chosen = keys.isin(pd.MultiIndex.from_frame(dev[list(pair)])) == (split == "dev")
    return [table._replace(rows=table.rows[chosen])]


def read_table(path: Path, names: Mapping[str, str], header: Sequence[str] = (), skip_short: bool = False) -> Table:
    """Read a file of tab-separated values in which quotes mean nothing, or, if it is a .csv, of comma-separated ones.

    Fields may be empty, blank lines are passed over, lines may end as on Windows, and the file may start with a
    byte-order mark.

    Args:
        path: the file.
        names: column by what it is for.
        header: the columns of a file that has no header line.
        skip_short: pass over rows with too few columns, and warn of their number.

    Raises:
        InputError: for a missing column, a row with another number of columns, or text that is not UTF-8, with file
            and line.
    """
    from pyarrow import csv as arrow  # type: ignore[import-untyped]
    from pyarrow import lib

    separator, quotes = (",", '"') if path.suffix == ".csv" else ("\t", False)
    columns, first = (list(header), 0) if header else _header(path, separator, names)
    chosen = _choose(names, columns, str(path) if header else f"{path}:{first}")
    wrong: list[tuple[int, int]] = []

    def note(row: Any) -> str:
        wrong.append((row.number, row.actual_columns))
        return "skip"

    parse = {"quote_char": quotes, "double_quote": bool(quotes), "newlines_in_values": bool(quotes)}
    try:
        table = arrow.read_csv(
            path,
            arrow.ReadOptions(use_threads=False, column_names=columns, skip_rows=first),
            arrow.ParseOptions(delimiter=separator, **parse, ignore_empty_lines=False, invalid_row_handler=note),
            arrow.ConvertOptions(column_types=dict.fromkeys(columns, "string"), strings_can_be_null=False),
        ).to_pandas()
    except lib.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return Table(path, pd.DataFrame(columns=list(chosen)))
        raise InputError(f"{path}{_arrow_line(str(error))}") from error
    for line, width in wrong:
        if not skip_short or width > len(columns):
            listed = ", ".join(columns)
            raise InputError(f"{path}:{line}: expected {len(columns)} columns, got {width}: {listed}")
    if wrong:
        _warn_once(f"{path}: skipped {len(wrong)} rows with missing columns, the first at line {wrong[0][0]}")
    skipped = {line for line, _ in wrong}
    lines = (line for line in range(first + 1, first + 1 + len(table) + len(skipped)) if line not in skipped)
    table.index = pd.Index(list(lines))
    table = table[(table != "").any(axis=1)]  # a blank line is a row of nothing
    return Table(path, table[list(chosen.values())].set_axis(list(chosen), axis=1))


def _header(path: Path, separator: str, names: Mapping[str, str]) -> tuple[list[str], int]:
    """The columns that the first line says that is not blank, and its number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if text := line.decode("utf-8-sig", "replace").strip("\r\n"):
                return next(csv.reader([text])) if separator == "," else text.split(separator), number
    raise InputError(f"{path} is empty: expected a header line with {', '.join(names.values())}")


def _arrow_line(message: str) -> str:
    row = re.search(r"Row #(\d+)", message)
    kind = "not UTF-8 text" if "UTF8" in message else message
    return f":{row[1]}: {kind}" if row else f": {kind}"


def _choose(names: Mapping[str, str], header: Sequence[str], place: str) -> dict[str, str]:
    """The columns to read, by what they are for: those asked for, and that of the rows' ids where there is one."""
    for name in names.values():
        if name not in header:
            raise InputError(f"{place}: no column {name!r}, only {', '.join(header)}")
    ids = [name for name in ID_COLUMNS if name in header and name not in names.values()]
    return {**names, "id": ids[0]} if ids else dict(names)


def read_json_lines(path: Path, names: Mapping[str, str]) -> Table:
    """Read a file with one JSON object a line. Raises `InputError` for a line that is none or lacks a key."""
    rows: dict[int, list[Any]] = {}
    chosen = dict(names)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON ({error.msg}): expected one object a line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: a {type(row).__name__}: expected one JSON object a line")
            if not rows or any(
                name not in row for name in chosen.values()
            ):  # the first line says whether there are ids
                chosen = _choose(chosen, list(row), f"{path}:{number}")
            rows[number] = [row[name] for name in chosen.values()]
    return Table(path, pd.DataFrame.from_dict(rows, orient="index", columns=list(chosen), dtype=object))


def read_parquet(path: Path, names: Mapping[str, str]) -> Table:
    """Read a Parquet file, with the names of the classes where `datasets` has written them into it."""
    import pyarrow
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(path) as file:
            chosen = _choose(names, file.schema_arrow.names, str(path))
            rows = file.read(columns=list(chosen.values())).to_pandas()
            metadata = file.schema_arrow.metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no Parquet file: copy or download it again") from error
    features = json.loads(metadata.get(b"huggingface", "{}")).get("info", {}).get("features", {})
    return _numbered(path, rows, chosen, features.get("label", {}).get("names", ()))


def read_saved(path: Path, names: Mapping[str, str]) -> Table:
    """Read a split from the `state.json` of the folder that `datasets`' `save_to_disk` has written for it."""
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path.parent))
    except Exception as error:  # datasets, pyarrow and json raise many kinds; all mean that the folder is damaged
        raise InputError(f"{path.parent} is no data set that can be read: save or copy it again") from error
    return _from_dataset(dataset, path.parent, names)


def read_hub(name: str, config: str, split: str, names: Mapping[str, str]) -> Table:
    """Load a split through `datasets`: from the Hugging Face hub, or from its cache."""
    import datasets

    _warn_once(
        f"{name} is no folder here: loading the data set of that name from the Hugging Face hub or its cache "
        "(without a network this takes up to a minute to fail; HF_HUB_OFFLINE=1 fails at once)"
    )
    try:
        dataset = datasets.load_dataset("nyu-mll/glue" if name == "glue" else name, config, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: no such folder, nor to be had from the Hugging Face hub ({reason})") from error
    return _from_dataset(dataset, Path(name) / config / split, names)


def _from_dataset(dataset: Any, path: Path, names: Mapping[str, str]) -> Table:
    chosen = _choose(names, dataset.column_names, str(path))
    rows = dataset.select_columns(list(chosen.values())).to_pandas()
    return _numbered(path, rows, chosen, getattr(dataset.features.get("label"), "names", None) or ())


def _numbered(path: Path, rows: pd.DataFrame, chosen: Mapping[str, str], classes: Sequence[str]) -> Table:
    rows = rows[list(chosen.values())].set_axis(list(chosen), axis=1)
    return Table(path, rows.set_axis(range(1, len(rows) + 1)), tuple(classes))


READERS: tuple[tuple[str, Callable[[Path, Mapping[str, str]], Table]], ...] = (
    ("{}-*.parquet", read_parquet),
    ("{}.parquet", read_parquet),
    ("{}/*.parquet", read_parquet),
    ("{}.jsonl", read_json_lines),
    ("{}.json", read_json_lines),
    ("{}/state.json", read_saved),
)


def _examples(task: Task, tables: Sequence[Table]) -> Examples:
    if not sum(len(table.rows) for table in tables):
        raise InputError(f"{tables[0].path} is empty: expected rows of {task.title}")
    columns: dict[str, list[Any]] = {}
    for table in tables:
        for use in table.rows.columns:
            columns.setdefault(use, []).extend(_column(task, table, use))
    count = len(columns["first"])
    ids = columns["id"] if len(columns.get("id", ())) == count else list(range(count))
    return Examples(columns["first"], columns.get("second"), columns.get("label"), ids)


def _column(task: Task, table: Table, use: str) -> list[Any]:
    """The values of a column as `Examples` has them. Raises `InputError` for the first that cannot be."""
    values: list[Any] = table.rows[use].tolist()
    converted: list[Any]
    if use == "id":
        return [int(value) if str(value).isdecimal() else str(value) for value in values]
    if use in ("first", "second"):
        converted, expected = [value if isinstance(value, str) else None for value in values], "a string"
    elif use == "label" and task.is_regression:
        numbers = pd.to_numeric(table.rows[use], errors="coerce")
        converted = [value if 0 <= value <= 5 else None for value in numbers.tolist()]
        expected = "a number from 0 to 5"
    elif use == "label":
        known = {name: number for names in (task.labels, task.codes) for number, name in enumerate(names)}
        order = table.class_names or task.labels
        converted = [known.get(_class_name(value, order)) for value in values]
        expected = " or ".join(dict.fromkeys((*task.codes, *task.labels)))
    else:  # what told the rows of two sets apart
        return values
    if None in converted:
        row = converted.index(None)
        what = (
            f"unknown label {values[row]!r}"
            if use == "label" and task.labels
            else f"the {WORDS[use]} is {values[row]!r}"
        )
        raise InputError(f"{table.place(table.rows.index[row])}: {what}: expected {expected}")
    return converted


WORDS = {"first": "first text", "second": "second text", "label": "label"}


def _class_name(value: Any, order: Sequence[str]) -> str:
    """The name of a label; a number counts the names, in the order that the file says if it says one."""
    if isinstance(value, int) and 0 <= value < len(order):
        return order[value]
    return value if isinstance(value, str) else ""


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, but not again when the same data are read again."""
    log.warning("%s", message)
