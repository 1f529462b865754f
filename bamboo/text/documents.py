"""Documents out of files, one after the other: plain text, JSON lines, Parquet and saved Hugging Face data sets."""

import codecs
import io
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


def read_documents(sources: Sequence[Path], field: str = "text") -> Iterator[str]:
    r"""The documents of files and folders, in the order of `find_files`, of which only one is held at a time.

    - `.txt`, `.text`, `.md`, `.rst`: UTF-8, with or without a byte-order mark. A file is a document; one of more than
      32,768 characters is cut into documents of about half of that, at a blank line where there is one, else at the
      end of a line, else at a blank. Thus a book is some dozens of documents, and a file of any size is streamed. To
      keep long texts whole, give them as JSON lines. "\r\n" becomes "\n".
    - `.jsonl`: each line is an object, its `field` a document.
    - `.parquet`, and `.arrow` as `datasets.save_to_disk` writes it: each row is one, in the column `field`.

    Documents of nothing but blanks are left out.

    Args:
        sources: files and folders.
        field: name of the text in JSON lines and tables.

    Raises:
        InputError: where a source is missing or empty, at once; where a file cannot be read, when its turn comes.
    """
    return _documents(find_files(sources), field)


def find_files(sources: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in named folders at any depth, in the order of their names.

    In folders, what is hidden, empty or of another kind is passed over, as are the files in which `datasets` caches.

    Raises:
        InputError: for a source that is missing, empty, of a kind that is not read, or a folder without text.
    """
    files: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(_below(source))
            if not found:
                raise InputError(f"{source} holds no text: expected files that end in {', '.join(READERS)}")
            files |= dict.fromkeys(found)
        elif not source.is_file():
            raise InputError(f"{source} is missing: expected a text file or a folder of them")
        elif source.suffix.lower() not in READERS:
            raise InputError(f"{source} cannot be read: expected a name that ends in {', '.join(READERS)}")
        elif not source.stat().st_size:
            raise InputError(f"{source} is empty")
        else:
            files[source] = None
    return list(files)


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names):
            wanted = path.suffix.lower() in READERS and not path.name.startswith((".", "cache-"))
            if wanted and path.is_file() and path.stat().st_size:
                yield path


def _documents(files: Sequence[Path], field: str) -> Iterator[str]:
    for path in files:
        try:
            for text in READERS[path.suffix.lower()](path, field):
                if text and not text.isspace():
                    yield text
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error


def _passages(path: Path, _: str) -> Iterator[str]:
    rest = ""
    for block in _decoded(path):
        rest, start = rest + block, 0
        while len(rest) - start > LONG:
            end = _cut(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def _cut(text: str, start: int) -> int:
    """Where the document that starts at `start` ends."""
    found = (pattern.search(text, start + SHORT, start + LONG) for pattern in CUTS)
    return next((match.end() for match in found if match), start + LONG)


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file in blocks, with the ends of lines made alike and without a byte-order mark."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    offset, lines = 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            if 0 in block:
                at = offset + block.index(0)
                raise InputError(f"{path} holds a NUL at byte {at}: it is binary or UTF-16, and should be UTF-8 text")
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset + len(block) - len(error.object) + error.start
                line = lines + error.object.count(b"\n", 0, error.start)
                raise InputError(f"{path}:{line} is not UTF-8 (byte {at} of the file): convert the file") from error
            yield text if offset else text.removeprefix("\ufeff")
            if not block:
                return
            offset, lines = offset + len(block), lines + block.count(b"\n")


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
                raise InputError(
                    f"{path}:{number} is a {type(row).__name__}: expected an object with a field {field!r}"
                )
            if field not in row:
                raise InputError(f"{path}:{number} has no field {field!r}, but {', '.join(map(repr, row)) or 'none'}")
            yield _text_of(row[field], f"{path}:{number}", field)


def _text_of(value: Any, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is of type {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can write but UTF-8 cannot
        return value.encode("utf-8", "replace").decode()
    return value


def _parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            _check_column(path, table.schema_arrow.names, field)
            yield from _rows(path, table.iter_batches(64, columns=[field]), field)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no Parquet file: copy or download it again") from error


def _arrow(path: Path, field: str) -> Iterator[str]:
    import pyarrow

    try:
        # Not mapped into memory: what is read of a mapped file counts as memory of the process.
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as table:
            _check_column(path, table.schema.names, field)
            yield from _rows(path, table, field)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no Arrow stream: copy or save it again") from error


def _check_column(path: Path, names: Sequence[str], field: str) -> None:
    if field not in names:
        raise InputError(f"{path} has no column {field!r}, but {', '.join(map(repr, names))}")


def _rows(path: Path, batches: Any, field: str) -> Iterator[str]:
    number = 0
    for batch in batches:
        for value in batch.column(field):
            number += 1
            yield _text_of(value.as_py(), f"{path}, row {number}", field)


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), _passages),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""How to read a file, by the end of its name."""
