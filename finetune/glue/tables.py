"""Columns of examples, as files hold them: Parquet, JSON lines, and data sets that Hugging Face's `datasets` saved."""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bamboo.errors import InputError

log = logging.getLogger(__name__)

ID_COLUMNS = ("index", "id", "idx")


class Table(NamedTuple):
    """Some rows of one file.

    Args:
        path: the file, for messages.
        columns: values by what they are for: `first`, `second`, `label`, and `id` where the file numbers its rows.
        lines: the line of each row, counted from 1, where the file is made of lines.
        class_names: names of the classes, in the order of their ids, where the file says them.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None
    class_names: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Where a row is, for messages: `FILE:LINE`, or `FILE, row N`."""
        return f"{self.path}:{self.lines[row]}" if self.lines else f"{self.path}, row {row + 1}"

    def select(self, rows: Sequence[int]) -> "Table":
        """The table with these rows alone."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return self._replace(columns=columns, lines=[self.lines[row] for row in rows] if self.lines else None)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, but not again when the same data are read again."""
    log.warning("%s", message)


def choose_columns(names: Mapping[str, str], header: Sequence[str], place: str) -> dict[str, str]:
    """The columns to read, by what they are for: those asked for, and that of the rows' ids where there is one.

    Args:
        names: column by what it is for; all of them are needed.
        header: the columns there are.
        place: of the header, for messages.

    Raises:
        InputError: where a column is missing.
    """
    for name in names.values():
        if name not in header:
            raise InputError(f"{place}: no column {name!r}, only {', '.join(header)}")
    ids = [name for name in ID_COLUMNS if name in header]
    return {**names, "id": ids[0]} if ids else dict(names)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers, without line ends and byte-order mark.

    Only line feeds, and carriage returns before them, end a line: the other characters that Python's `splitlines`
    takes for line ends occur inside sentences.

    Raises:
        InputError: where a line is not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
            if text:
                yield number, text


def read_json_lines(path: Path, names: Mapping[str, str]) -> Table:
    """Read a file with one JSON object a line.

    Args:
        path: the file.
        names: key by what it is for.

    Raises:
        InputError: for a line that is no such object or lacks a key, naming it.
    """
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    chosen = dict(names)
    for number, text in text_lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON ({error.msg}): expected one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a {type(row).__name__}: expected one JSON object a line")
        if not lines or any(name not in row for name in chosen.values()):  # the first line says whether there are ids
            chosen = choose_columns(chosen, list(row), f"{path}:{number}")
        for use, name in chosen.items():
            columns.setdefault(use, []).append(row[name])
        lines.append(number)
    return Table(path, columns, lines)


def read_parquet(path: Path, names: Mapping[str, str]) -> Table:
    """Read a Parquet file, with the names of the classes where `datasets` has written them into it.

    Args:
        path: the file.
        names: column by what it is for.

    Raises:
        InputError: where it is damaged or lacks a column.
    """
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(path) as file:
            chosen = choose_columns(names, file.schema_arrow.names, str(path))
            content = file.read(columns=list(chosen.values()))
            metadata = file.schema_arrow.metadata or {}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no Parquet file: copy or download it again") from error
    columns = {use: content.column(name).to_pylist() for use, name in chosen.items()}
    features = json.loads(metadata.get(b"huggingface", "{}")).get("info", {}).get("features", {})
    return Table(path, columns, class_names=tuple(features.get("label", {}).get("names", ())))


def read_saved(path: Path, names: Mapping[str, str]) -> Table:
    """Read a folder that `datasets`' `save_to_disk` has written for one split.

    Args:
        path: the folder.
        names: column by what it is for.

    Raises:
        InputError: where it is damaged or lacks a column.
    """
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # datasets, pyarrow and json raise many kinds; all mean that the folder is damaged
        raise InputError(f"{path} is no data set that can be read: save or copy it again") from error
    return from_dataset(dataset, path, names)


def read_hub(name: str, config: str, split: str, names: Mapping[str, str]) -> Table:
    """Load a split through `datasets`: from the Hugging Face hub, or from its cache.

    Args:
        name: of the data set, such as `nyu-mll/glue`.
        config: of its configuration.
        split: as the data set names it.
        names: column by what it is for.

    Raises:
        InputError: where the hub cannot be reached or has no such data set.
    """
    import datasets

    warn_once(
        f"{name} is no folder here: loading the data set of that name from the Hugging Face hub or its cache "
        "(without a network this takes up to a minute to fail; HF_HUB_OFFLINE=1 fails at once)"
    )
    try:
        dataset = datasets.load_dataset("nyu-mll/glue" if name == "glue" else name, config, split=split)
    except Exception as error:  # datasets, huggingface_hub and httpx raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: no such folder, nor to be had from the Hugging Face hub ({reason})") from error
    return from_dataset(dataset, Path(name) / config / split, names)


def from_dataset(dataset: Any, path: Path, names: Mapping[str, str]) -> Table:
    """A table from a split that `datasets` has opened.

    Args:
        dataset: a `datasets.Dataset`.
        path: where it came from, for messages.
        names: column by what it is for.
    """
    chosen = choose_columns(names, dataset.column_names, str(path))
    content = dataset.select_columns(list(chosen.values()))[:]
    columns = {use: list(content[name]) for use, name in chosen.items()}
    label = dataset.features.get("label")
    return Table(path, columns, class_names=tuple(getattr(label, "names", None) or ()))
