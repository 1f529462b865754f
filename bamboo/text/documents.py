"""Documents out of files, one after the other: plain text, JSON lines, Parquet and saved Hugging Face data sets."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bamboo.errors import InputError

SHORT, LONG = 1 << 14, 1 << 15
"""A text file of more than `LONG` characters (5,500 English words) is cut behind each `SHORT` or some more of them."""
BLOCK = 1 << 16
CUTS = [re.compile(pattern) for pattern in (r"\n[^\S\n]*\n", r"\n", r"\s")]


def read_documents(files: Sequence[Path], field: str = "text") -> Iterator[str]:
    r"""The documents of files, of which only one is held at a time; those of nothing but blanks are left out.

    - `.txt`, `.text`, `.md`, `.rst`: UTF-8, with or without a byte-order mark. A file is a document; one of more than
      32,768 characters is cut into documents of about half of that, at a blank line where there is one, else at the
      end of a line, else at a blank. To keep long texts whole, give them as JSON lines. "\r\n" becomes "\n".
    - `.jsonl`: each line is an object, its `field` a document.
    - `.parquet`, and `.arrow` as `datasets.save_to_disk` writes it: each row is one, in the column `field`.

    Raises:
        InputError: where a file cannot be read, when its turn comes; it names the file, and the line or row.
    """
    for path in files:
        try:
            for text in READERS[path.suffix.lower()](path, field):
                if text and not text.isspace():
                    yield text
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error


def find_files(sources: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in named folders at any depth, in the order of their names.

    In folders, what is hidden, empty or of another kind is passed over, as are the files in which `datasets` caches.

    Raises:
        InputError: for a source that is missing, empty, of a kind that is not read, or a folder without text.
    """
    files: dict[Path, None] = {}
    for source in map(Path, sources):
        inside = sorted(_below(source)) if source.is_dir() else [source]
        if not inside:
            raise InputError(f"{source} holds no text: expected files that end in {', '.join(READERS)}")
        if not inside[0].is_file():
            raise InputError(f"{source} is missing: expected a text file or a folder of them")
        if inside[0].suffix.lower() not in READERS:
            raise InputError(f"{source} cannot be read: expected a name that ends in {', '.join(READERS)}")
        if not inside[0].stat().st_size:
            raise InputError(f"{source} is empty")
        files |= dict.fromkeys(inside)
    return list(files)


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names if not name.startswith((".", "cache-"))):
            if path.suffix.lower() in READERS and path.is_file() and path.stat().st_size:
                yield path


def _passages(path: Path, _: str) -> Iterator[str]:
    rest = ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while block := file.read(BLOCK):
                if "\0" in block:
                    raise InputError(f"{path} holds a NUL: it is binary or UTF-16, and should be UTF-8 text")
                rest, start = rest + block, 0
                while len(rest) - start > LONG:
                    cuts = (pattern.search(rest, start + SHORT, start + LONG) for pattern in CUTS)
                    end = next((cut.end() for cut in cuts if cut), start + LONG)
                    yield rest[start:end]
                    start = end
                rest = rest[start:]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{_undecodable_line(path)} is not UTF-8: convert the file") from error
    yield rest


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        return next(number for number, line in enumerate(file, 1) if line.decode(errors="ignore").encode() != line)


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON or of UTF-8
                raise InputError(f"{path}:{number} is no JSON: expected an object on each line") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number} is a {type(row).__name__}: expected an object with {field!r}")
            if field not in row:
                raise InputError(f"{path}:{number} has no field {field!r}, but {', '.join(map(repr, row)) or 'none'}")
            yield _text_of(row[field], f"{path}:{number}", field)


def _rows(path: Path, field: str) -> Iterator[str]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import ipc, parquet

    columns = path.suffix.lower() == ".parquet"
    try:
        # Not mapped into memory: what is read of a mapped file counts as memory of the process.
        with pyarrow.OSFile(str(path)) as file:
            table = parquet.ParquetFile(file) if columns else ipc.open_stream(file)
            names = (table.schema_arrow if columns else table.schema).names
            if field not in names:
                raise InputError(f"{path} has no column {field!r}, but {', '.join(map(repr, names))}")
            batches = table.iter_batches(64, columns=[field]) if columns else table
            for number, value in enumerate((value for batch in batches for value in batch.column(field)), 1):
                yield _text_of(value.as_py(), f"{path}, row {number}", field)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Parquet file" if columns else "Arrow stream"
        raise InputError(f"{path} is cut short or no {kind}: copy or download it again") from error


def _text_of(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is of type {type(value).__name__}, expected text")
    return value.encode("utf-8", "replace").decode()  # half a pair of surrogates, which JSON can write, becomes "?"


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), _passages),
    **{".jsonl": _json_lines, ".parquet": _rows, ".arrow": _rows},
}
"""How to read a file, by the end of its name."""
