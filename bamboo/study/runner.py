"""All cells of a study, several at a time, and what is kept of the study beside them."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.workers import Report, run_tasks

from .cells import FAILED, cell_folder, cell_state, write_failure
from .reading import study_of
from .running import run_cell
from .spec import Cell, Study

STUDY = "study.yaml"


def store(study: Study, out: Path) -> None:
    """Keep the study, complete, beside its cells.

    Raises:
        InputError: where the folder holds another study.
    """
    from omegaconf import OmegaConf

    path = out / STUDY
    if path.is_file():
        theirs, ours = load_stored(out).to_dict(), study.to_dict()
        other = next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key != "workers"), None)
        if other:
            raise InputError(f"{out} holds another study: its {other} differ, see {path}; give another --out")
        return
    with atomic_write(path) as temporary:
        OmegaConf.save(OmegaConf.create(study.to_dict()), temporary)


def load_stored(out: Path) -> Study:
    """The study that a folder was made by. Raises `InputError` where it is none."""
    from omegaconf import OmegaConf

    path = out / STUDY
    if not path.is_file():
        raise InputError(f"{out} holds no study: there is no {STUDY} in it")
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return study_of(content)


def waiting(study: Study, out: Path, retry: bool = False) -> list[Cell]:
    """The cells that are still to be run; failed ones only if they are to be tried again."""
    left = ("waiting", "begun", *(("failed",) if retry else ()))
    return [cell for cell in study.cells() if cell_state(cell_folder(out, cell)) in left]


def run_cells(study: Study, cells: Sequence[Cell], out: Path, workers: int, devices: Sequence[str] = ()) -> None:
    """Run cells in worker processes, one for each of `devices` (numbers of GPUs), or `workers` without GPUs.

    A cell whose worker dies, for want of memory or by a signal, is recorded as failed, and the others go on.
    """
    threads = {"OMP_NUM_THREADS": str(study.threads), "MKL_NUM_THREADS": str(study.threads)}
    environments = [threads | {"CUDA_VISIBLE_DEVICES": device} for device in devices] or [threads] * workers
    total = len(study.cells())

    def ended(cell: Cell, reason: str | None) -> None:
        if reason:
            write_failure(cell_folder(out, cell), reason)
        bar.update()

    with tqdm(total=total, initial=total - len(cells), unit="cell", dynamic_ncols=True) as bar:
        run_tasks(partial(_work, study, out), cells, environments, ended, bar)


def _work(study: Study, out: Path, cell: Cell, _: Report) -> None:
    run_locked(study, cell, out)


def run_locked(study: Study, cell: Cell, out: Path) -> None:
    """Run a cell unless it is done, alone: another process that wants it waits, and finds it done."""
    folder = cell_folder(out, cell)
    with _lock(folder):
        if cell_state(folder) != "done":
            run_cell(study, cell, out)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def failures(study: Study, out: Path) -> dict[str, str]:
    """Why each failed cell failed, by its name."""
    import json

    found = {}
    for cell in study.cells():
        path = cell_folder(out, cell) / FAILED
        if path.is_file():
            found[cell.name] = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    return found
