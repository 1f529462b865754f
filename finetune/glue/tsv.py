"""The benchmark's own files: tab-separated text in which quotes mean nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bamboo.errors import InputError

from .tables import Table, choose_columns, text_lines, warn_once


def read_tsv(path: Path, names: Mapping[str, str], header: Sequence[str] = (), skip_short: bool = False) -> Table:
    """Read a file of tab-separated values.

    Quotes are letters like any other, fields may be empty, blank lines are passed over, lines may end as on Windows,
    and the file may start with a byte-order mark.

    Args:
        path: the file.
        names: column by what it is for.
        header: the columns of a file that has no header line.
        skip_short: pass over rows with too few columns, and warn of their number.

    Raises:
        InputError: for a missing column, a row with another number of columns, or text that is not UTF-8, with file
            and line.
    """
    lines = text_lines(path)
    if not header:
        first, text = next(lines, (1, ""))
        header = text.split("\t")
        if not text:
            raise InputError(f"{path} is empty: expected a header line with {', '.join(names.values())}")
        chosen = choose_columns(names, header, f"{path}:{first}")
    else:
        chosen = choose_columns(names, header, str(path))
    columns: dict[str, list[str]] = {use: [] for use in chosen}
    positions = [(columns[use], list(header).index(name)) for use, name in chosen.items()]
    numbers: list[int] = []
    short: list[int] = []
    for number, text in lines:
        fields = text.split("\t")
        if skip_short and len(fields) < len(header):
            short.append(number)
            continue
        if len(fields) != len(header):
            raise InputError(f"{path}:{number}: expected {len(header)} columns, got {len(fields)}: {', '.join(header)}")
        for column, position in positions:
            column.append(fields[position])
        numbers.append(number)
    if short:
        warn_once(f"{path}: skipped {len(short)} rows with missing columns, the first at line {short[0]}")
    return Table(path, columns, numbers)
