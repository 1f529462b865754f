"""All cells of a study: several at a time, each worker a process that lives on, and is replaced if it dies."""

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.files import atomic_write

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


@dataclass
class Worker:
    """A process that runs cells, and the cell that it is at."""

    process: Any
    pipe: Connection
    cell: Cell | None = None


def run_cells(study: Study, cells: Sequence[Cell], out: Path, workers: int, devices: Sequence[str] = ()) -> None:
    """Run cells in worker processes, one for each of `devices` (numbers of GPUs), or `workers` without GPUs.

    A cell whose worker dies, for want of memory or by a signal, is recorded as failed, and the others go on.
    """
    queue = list(cells)
    places: list[str | None] = list(devices) or [None] * workers
    pool = {place: _start(study, out, device) for place, device in enumerate(places[: max(len(queue), 1)])}
    total = len(study.cells())
    with tqdm(total=total, initial=total - len(queue), unit="cell", dynamic_ncols=True) as bar:
        try:
            for worker in pool.values():
                _send(worker, queue)
            while any(worker.cell for worker in pool.values()):
                bar.set_postfix_str(", ".join(worker.cell.name for worker in pool.values() if worker.cell))
                wait([handle for w in pool.values() if w.cell for handle in (w.pipe, w.process.sentinel)])
                for place, worker in list(pool.items()):
                    if worker.cell and (alive := _is_over(worker)) is not None:
                        if not alive:
                            _bury(worker, out)
                            pool[place] = worker = _start(study, out, places[place])
                        _send(worker, queue)
                        bar.update()
        finally:
            for worker in pool.values():
                worker.pipe.close()  # which an idle worker takes for the end
                if worker.cell:
                    worker.process.kill()
                worker.process.join()


def _start(study: Study, out: Path, device: str | None) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(study.to_dict(), out, theirs, device))
    process.start()
    theirs.close()
    return Worker(process, ours)


def _send(worker: Worker, queue: list[Cell]) -> None:
    worker.cell = queue.pop(0) if queue else None
    if worker.cell:
        with suppress(BrokenPipeError):  # it has just died, which shows at once
            worker.pipe.send(worker.cell.number)


def _is_over(worker: Worker) -> bool | None:
    """None while a cell runs; afterwards whether its worker is still there."""
    if worker.pipe.poll():
        try:
            worker.pipe.recv()
        except EOFError:
            return False
        return True
    return None if worker.process.is_alive() else False


def _bury(worker: Worker, out: Path) -> None:
    worker.process.join()
    assert worker.cell is not None
    code = worker.process.exitcode
    reason = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    hint = ", most often for want of memory" if code == -signal.SIGKILL else ""
    write_failure(cell_folder(out, worker.cell), f"the worker process ended by {reason}{hint}")


def _work(told: dict[str, Any], out: Path, pipe: Connection, device: str | None) -> None:
    """What a worker does, from before torch is imported until it is told to stop."""
    study = study_of(told)
    os.environ |= {"OMP_NUM_THREADS": str(study.threads), "MKL_NUM_THREADS": str(study.threads)}
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        run_locked(study, study.cell(number), out)
        pipe.send(number)


def _end_with_parent() -> None:
    """Leave no orphan that goes on with a cell which another process has taken up."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


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
