"""The folder of a study: its file, and below `cells/` a folder for each cell; what is in them says what is done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bamboo.errors import InputError
from bamboo.files import atomic_write, read_json, write_json

from .changes import united
from .reading import read_study
from .spec import Cell, Study, check, folder_name

STUDY, RESULT, FAILED, LAYERS = "study.yaml", "result.json", "failed.json", "layers.json"
LENGTHS = "lengths.json"
DIFFERENCES = "differences.json"


def extended(study: Study, out: Path) -> Study:
    """A study with the shapes, objectives, seeds and values of axes that its folder holds already.

    Raises:
        InputError: where the folder holds a study whose cells would be others.
    """
    if not (out / STUDY).is_file():
        return study
    both = united(load_stored(out), study, f"{out} holds another study, see {out / STUDY}; give another --out")
    return check(replace(both, workers=study.workers))


def store(study: Study, out: Path) -> Study:
    """Keep a study, complete, beside its cells, with what was there before; see `extended`."""
    study = extended(study, out)
    with atomic_write(out / STUDY) as temporary:
        OmegaConf.save(OmegaConf.create(study.to_dict()), temporary)
    return study


def load_stored(out: Path) -> Study:
    """The study that a folder was made by. Raises `InputError` where it is none, or damaged."""
    path = out / STUDY
    if not path.is_file():
        raise InputError(f"{out} holds no study: there is no {STUDY} in it")
    return read_study(path)


def tuning_file(study: Study, cell: Cell, out: Path) -> Path | None:
    """Where the choice for a cell is kept, the same for all of its seeds; None where its objective has no such key."""
    if not study.tuned(cell):
        return None
    axes = [
        f"{name.split('.')[-1]}_{value}" for name, value in cell.axes if study.stage_of(cell.objective, name) == "train"
    ]
    return out / "tuning" / f"{folder_name(cell.objective, cell.label, *axes)}.json"


def chosen(study: Study, cell: Cell, out: Path) -> dict[str, Any]:
    """The chosen values by the paths of their keys; nothing where none were chosen so far."""
    path = tuning_file(study, cell, out)
    return read_json(path)["chosen"] if path and path.is_file() else {}


def waiting(study: Study, out: Path, retry: bool = False) -> list[Cell]:
    """The cells that are still to be run; failed ones only if they are to be tried again."""
    left = ("waiting", "begun", *(("failed",) if retry else ()))
    return [cell for cell in study.cells() if cell_state(cell_folder(out, cell)) in left]


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
    """The last checkpoint of a stage, `train` or `then`."""
    return folder / stage / "last.ckpt"


def write_failure(folder: Path, reason: str, diverged: bool = False) -> None:
    """Say why a cell failed, and whether it was trained and diverged."""
    write_json(folder / FAILED, {"reason": reason, "diverged": diverged})


def failures(study: Study, out: Path) -> dict[str, str]:
    """Why each failed cell failed, by its name."""
    folders = {cell.name: cell_folder(out, cell) for cell in study.cells()}
    failed = {name: folder for name, folder in folders.items() if cell_state(folder) == "failed"}
    return {name: read_json(folder / FAILED)["reason"] for name, folder in failed.items()}
