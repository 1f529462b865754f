"""Tables of texts: tab- or comma-separated values, JSON lines, Parquet, and data sets of `datasets`."""

import csv
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bamboo.errors import InputError

log = logging.getLogger(__name__)

ID_COLUMNS = ("index", "id", "idx")
WITH_LINES = (".tsv", ".csv", ".json", ".jsonl")


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
        return f"{self.path}:{row}" if self.path.suffix in WITH_LINES else f"{self.path}, row {row}"


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
    columns, first = (list(header), 0) if header else _header(path, names)
    chosen = _choose(names, columns, str(path) if header else f"{path}:{first}")
    rows, wrong = _parse(path, columns, first)
    for line, width in wrong.items():
        if not skip_short or width > len(columns):
            listed = ", ".join(columns)
            raise InputError(f"{path}:{line}: expected {len(columns)} columns, got {width}: {listed}")
    if wrong:
        log.warning("%s: skipped %d rows with missing columns, the first at line %d", path, len(wrong), min(wrong))
    return Table(path, _rename(rows[(rows != "").any(axis=1)], chosen))  # a blank line is a row of nothing


def _parse(path: Path, columns: Sequence[str], first: int) -> tuple[pd.DataFrame, dict[int, int]]:
    """The rows behind line `first` by line, as strings, and the number of columns of each line that has another."""
    from pyarrow import csv as arrow  # type: ignore[import-untyped]
    from pyarrow import lib

    wrong: dict[int, int] = {}

    def skip(row: Any) -> str:
        wrong[row.number] = row.actual_columns
        return "skip"

    quotes = {"quote_char": '"', "newlines_in_values": True} if path.suffix == ".csv" else {"quote_char": False}
    separator = "," if path.suffix == ".csv" else "\t"
    try:
        rows = arrow.read_csv(
            path,
            arrow.ReadOptions(use_threads=False, column_names=columns, skip_rows=first),
            arrow.ParseOptions(delimiter=separator, **quotes, ignore_empty_lines=False, invalid_row_handler=skip),
            arrow.ConvertOptions(column_types=dict.fromkeys(columns, "string"), strings_can_be_null=False),
        ).to_pandas()
    except lib.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return pd.DataFrame(columns=list(columns)), {}
        row, reason = re.search(r"Row #(\d+)", str(error)), str(error)
        reason = "not UTF-8 text" if row and "UTF8" in reason else reason
        raise InputError(f"{path}{f':{row[1]}' if row else ''}: {reason}") from error
    last = first + len(rows) + len(wrong)
    return rows.set_axis([line for line in range(first + 1, last + 1) if line not in wrong]), wrong


def _header(path: Path, names: Mapping[str, str]) -> tuple[list[str], int]:
    """The columns that the first line says that is not blank, and its number."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if text := line.decode("utf-8-sig", "replace").strip("\r\n"):
                return next(csv.reader([text])) if path.suffix == ".csv" else text.split("\t"), number
    raise InputError(f"{path} is empty: expected a header line with {', '.join(names.values())}")


def _choose(names: Mapping[str, str], columns: Sequence[str], place: str) -> dict[str, str]:
    """The columns to read, by what they are for: those asked for, and that of the rows' ids where there is one."""
    for name in names.values():
        if name not in columns:
            raise InputError(f"{place}: no column {name!r}, only {', '.join(columns)}")
    ids = [name for name in ID_COLUMNS if name in columns and name not in names.values()]
    return {**names, "id": ids[0]} if ids else dict(names)


def _rename(rows: pd.DataFrame, chosen: Mapping[str, str]) -> pd.DataFrame:
    return rows[list(chosen.values())].set_axis(list(chosen), axis=1)


def read_json_lines(path: Path, names: Mapping[str, str]) -> Table:
    """Read a file with one JSON object a line. Raises `InputError` for a line that is none or lacks a key."""
    rows: dict[int, list[Any]] = {}
    chosen = dict(names)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not JSON ({error}): expected one object a line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: a {type(row).__name__}: expected one JSON object a line")
            if not rows or not row.keys() >= {*chosen.values()}:  # the first line says whether there are ids
                chosen = _choose(chosen, list(row), f"{path}:{number}")
            rows[number] = [row[name] for name in chosen.values()]
    return Table(path, pd.DataFrame.from_dict(rows, orient="index", columns=list(chosen), dtype=object))


def read_parquet(path: Path, names: Mapping[str, str]) -> Table:
    """Read a Parquet file, with the names of the classes where `datasets` has written them into it."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    def load() -> Dataset:
        with ParquetFile(path) as file:
            return Dataset(InMemoryTable(file.read()))

    return _from_dataset(load, path, names, "is cut short or no Parquet file: copy or download it again")


def read_saved(path: Path, names: Mapping[str, str]) -> Table:
    """Read a split from the `state.json` of the folder that `datasets`' `save_to_disk` has written for it."""
    from datasets import load_from_disk

    fault = "is no data set that can be read: save or copy it again"
    return _from_dataset(lambda: load_from_disk(str(path.parent)), path.parent, names, fault)


def read_hub(name: str, config: str, split: str, names: Mapping[str, str]) -> Table:
    """Load a split through `datasets`: from the Hugging Face hub, or from its cache."""
    import datasets

    hub_name, fault = "nyu-mll/glue" if name == "glue" else name, "is no folder, nor to be had from the hub"
    load = partial(datasets.load_dataset, hub_name, config, split=split)
    return _from_dataset(load, Path(name), names, fault)


def _from_dataset(load: Callable[[], Any], path: Path, names: Mapping[str, str], fault: str) -> Table:
    try:
        dataset = load()
    except Exception as error:  # datasets, pyarrow, huggingface_hub and json raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} {fault} ({reason})") from error
    chosen = _choose(names, dataset.column_names, str(path))
    rows = _rename(dataset.select_columns(list(chosen.values())).to_pandas(), chosen)
    classes = getattr(dataset.features.get("label"), "names", None) or ()
    return Table(path, rows.set_axis(range(1, len(rows) + 1)), tuple(classes))
