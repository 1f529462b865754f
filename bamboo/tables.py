"""Tables for the terminal."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns set under one another, the first to the left and numbers to the right."""
    first, *others = ([*map(len, column)] for column in zip(*rows, strict=True))
    widths = [max(column) for column in others]
    return "\n".join(
        "  ".join([name.ljust(max(first)), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    )
