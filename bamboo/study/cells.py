"""The folder of a cell: what lies where in it, and whether the cell is done."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .spec import Cell

RESULT, FAILED = "result.json", "failed.json"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Where everything about a cell lies."""
    return out / "cells" / cell.name


def cell_state(folder: Path) -> str:
    """`done`, `failed`, `begun` or `waiting`."""
    if (folder / RESULT).is_file():
        return "done"
    if (folder / FAILED).is_file():
        return "failed"
    return "begun" if (folder / "train.yaml").is_file() else "waiting"


def checkpoint(folder: Path, stage: str) -> Path:
    """The last checkpoint of a stage."""
    return folder / stage / "last.ckpt"


def write_failure(folder: Path, reason: str) -> None:
    """Say why a cell failed."""
    write_json(folder / FAILED, {"reason": reason})


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    """Write plain data as JSON; numbers that are none are an error."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished cell. Raises `InputError` where its file is damaged."""
    path = folder / RESULT
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
