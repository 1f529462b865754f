"""Documents out of files, plain text, JSON lines, Parquet and what `datasets` saved, and of data sets of the hub."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bamboo.errors import InputError
from bamboo.locations import Location, parse_location

SHORT, LONG = 1 << 14, 1 << 15
BLOCK = 1 << 16
CUTS = [re.compile(pattern) for pattern in (r"\n[^\S\n]*\n", r"\n", r"\s")]


def read_documents(sources: Sequence[Path | Location], field: str = "text") -> Iterator[str]:
    r"""The documents of what `find_sources` found, one passage held at a time; those of blanks alone are left out.

    - `.txt`, `.text`, `.md`, `.rst`: UTF-8, with or without a byte-order mark; a file is a text. "\r\n" becomes "\n".
    - `.jsonl`: each line is an object, its `field` a text. Both may be compressed: `.txt.gz`, `.jsonl.zst`.
    - `.parquet`, and `.arrow` as `datasets.save_to_disk` writes it: each row is one, in the column `field`.
    - a data set of Hugging Face's hub likewise, streamed.

    A text is a document; one of more than 32,768 characters (5,500 English words) is cut into documents of half of that
    or some more, at a blank line where there is one, else at the end of a line, else at a blank. Where a file cannot be
    read, an `InputError` names it, and the line or row, when its turn comes.
    """
    for source in sources:
        try:
            for text in _texts(source, field):
                yield from (document for document in _cut(text) if document.strip())
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror or error}") from error


def _texts(source: Path | Location, field: str) -> Iterator[Iterable[str]]:
    return _hub_rows(source, field) if isinstance(source, Location) else READERS[_ending(source)](source, field)


def find_sources(sources: Sequence[str | Path]) -> list[Path | Location]:
    """The files that are named, those in named folders at any depth by their names, and what is named on the hub.

    A data set of the hub is spelled `hf:NAME`, behind it if need be `,config=` and `,split=`. In folders, what is
    hidden, empty or of another kind is passed over, as are the files in which `datasets` caches.
    Raises `InputError` for a source that is missing, or that is or holds no text.
    """
    found: dict[str, Path | Location] = {}
    for name in map(str, sources):
        if name.startswith("hf:"):
            found[name] = parse_location(name, ("config", "split"))
            continue
        source = Path(name)
        if not source.exists():
            raise InputError(f"{source} is missing: expected a text file or a folder of them")
        inside = sorted(path for path in (_below(source) if source.is_dir() else [source]) if _is_text(path))
        if not inside:
            raise InputError(f"{source} holds no text: expected {', '.join(READERS)}, and not empty")
        found |= {str(path): path for path in inside}
    return [*found.values()]


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and not path.name.startswith("cache-"):
            yield path


def _is_text(path: Path) -> bool:
    return bool(_ending(path)) and path.is_file() and path.stat().st_size > 0


def _ending(path: Path) -> str:
    """How a file's name ends, of the endings of `READERS`, "" for none of them."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")


def _cut(blocks: Iterable[str]) -> Iterator[str]:
    """Documents of a text that comes in blocks."""
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > LONG:
            places = (pattern.search(rest, SHORT, LONG) for pattern in CUTS)
            end = next((place.end() for place in places if place), LONG)
            yield rest[:end]
            rest = rest[end:]
    yield rest


def _plain_text(path: Path, _: str) -> Iterator[Iterable[str]]:
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as file:
        yield _blocks(path, file)


def _open(path: Path) -> BinaryIO:
    """A file for reading, decompressed by what its name ends with."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    from pyarrow import input_stream  # type: ignore[import-untyped]

    return io.BufferedReader(input_stream(str(path), compression=compression))


def _blocks(path: Path, file: Any) -> Iterator[str]:
    try:
        while block := file.read(BLOCK):
            if "\0" in block:
                raise InputError(f"{path} holds a NUL: it is binary or UTF-16, and should be UTF-8 text")
            yield block
    except UnicodeDecodeError as error:
        with _open(path) as lines:
            bad = next(n for n, line in enumerate(lines, 1) if line.decode(errors="ignore").encode() != line)
        raise InputError(f"{path}:{bad} is not UTF-8: convert the file") from error


def _json_lines(path: Path, field: str) -> Iterator[Iterable[str]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                value = json.loads(line)[field]
            except (ValueError, TypeError, KeyError) as error:  # of JSON or of UTF-8, no object, or without the field
                raise InputError(f"{path}:{number} is no JSON object with a field {field!r}") from error
            yield _blocks_of(value, f"{path}:{number}", field)


def _rows(path: Path, field: str) -> Iterator[Iterable[str]]:
    import pyarrow
    from pyarrow import ipc, parquet

    is_parquet = path.suffix.lower() == ".parquet"
    try:
        # Not mapped into memory: what is read of a mapped file counts as memory of the process.
        with pyarrow.OSFile(str(path)) as file:
            table = parquet.ParquetFile(file) if is_parquet else ipc.open_stream(file)
            names = (table.schema_arrow if is_parquet else table.schema).names
            if field not in names:
                raise InputError(f"{path} has no column {field!r}, but {', '.join(map(repr, names))}")
            batches = table.iter_batches(64, columns=[field]) if is_parquet else table
            for number, value in enumerate((value for batch in batches for value in batch.column(field)), 1):
                yield _blocks_of(value.as_py(), f"{path}, row {number}", field)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Parquet file" if is_parquet else "Arrow stream"
        raise InputError(f"{path} is cut short or no {kind}: copy or download it again") from error


def _hub_rows(source: Location, field: str) -> Iterator[Iterable[str]]:
    from datasets import load_dataset

    name, options = source.path.removeprefix("hf:"), source.options
    try:
        rows = load_dataset(name, options.get("config"), split=options.get("split", "train"), streaming=True)
        for number, row in enumerate(rows, 1):
            if field not in row:
                raise InputError(f"{source.path} has no column {field!r}, but {', '.join(map(repr, row))}")
            yield _blocks_of(row[field], f"{source.path}, row {number}", field)
    except InputError:
        raise
    except Exception as error:  # absent, gated, offline, cut off on the way: each in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{source.path} cannot be read: {reason}") from error


def _blocks_of(value: Any, where: str, field: str) -> list[str]:
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is of type {type(value).__name__}, expected text")
    text = value.encode("utf-8", "replace").decode()  # half a pair of surrogates, which JSON can write, becomes "?"
    return [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]


COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_LINES = {**dict.fromkeys((".txt", ".text", ".md", ".rst"), _plain_text), ".jsonl": _json_lines}
READERS: dict[str, Callable[[Path, str], Iterator[Iterable[str]]]] = {
    **{ending + packed: read for packed in ("", *COMPRESSIONS) for ending, read in _LINES.items()},
    **{".parquet": _rows, ".arrow": _rows},
}
"""How to read a file, by the end of its name: texts, each in blocks."""
