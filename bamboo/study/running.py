"""Cells from start to end: train, follow up, measure, and write the result last; several cells at a time."""

import contextlib
import gc
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from bamboo.errors import Diverged
from bamboo.files import write_json
from bamboo.workers import Report, reason_of, run_tasks, worker_environments

from .folders import FAILED, RESULT, cell_folder, cell_state, write_failure
from .spec import Cell, Study
from .stages import fit, locked, run_config
from .tuning import choose


def run_cells(study: Study, cells: Sequence[Cell], out: Path, workers: int | None = None) -> None:
    """Run cells in worker processes, one for each GPU, or without GPUs those of the study, unless `workers` are given.

    Where the study has a command that starts training, GPUs are left to it.

    A cell whose worker dies, for want of memory or by a signal, is recorded as failed, and the others go on.
    """
    threads = {"OMP_NUM_THREADS": str(study.threads), "MKL_NUM_THREADS": str(study.threads)}
    count = workers or study.workers
    environments = [threads | own for own in ([{}] * count if study.launch else worker_environments(workers, count))]
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
    with locked(folder):
        if cell_state(folder) != "done":
            run_cell(study, cell, folder)


def run_cell(study: Study, cell: Cell, folder: Path) -> None:
    """Run a cell, or what is left of it, and write its `result.json`; what it prints goes to its `log.txt`.

    Whatever goes wrong is written to `failed.json` instead, and is not raised.
    """
    (folder / FAILED).unlink(missing_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log, _resources(study.threads):
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                _run(study, cell, folder, log)
        except Exception as error:  # whatever it is, the other cells go on
            traceback.print_exc(file=log)
            write_failure(folder, reason_of(error), isinstance(error, Diverged))


def _run(study: Study, cell: Cell, folder: Path, log: TextIO) -> None:
    from .evaluation import evaluate  # once the process has its environment

    objective, cpu = study.objectives[cell.objective], time.process_time()
    choose(study, cell, folder.parent.parent, log)
    cost = {"seconds_train": _pretrain(study, cell, folder, log)}
    if objective.then:
        cost["seconds_then"] = fit(study, run_config(study, cell, folder, "then"), folder / "then", log)
    since = time.perf_counter()
    numbers, step_cost = evaluate(study, cell, folder)
    if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise Diverged(f"{', '.join(bad)} of the trained model: not a finite number")
    cost = step_cost | cost
    cost |= {"seconds_evaluation": time.perf_counter() - since, "cpu_seconds": time.process_time() - cpu}
    result = {
        "cell": cell.name,
        "objective": cell.objective,
        "kind": objective.kind,
        "label": cell.label,
        "shape": asdict(cell.shape),
        "axes": dict(cell.axes),
        "seed": cell.seed,
        "numbers": numbers,
        "cost": cost,
    }
    write_json(folder / RESULT, result | _system())


def _pretrain(study: Study, cell: Cell, folder: Path, log: TextIO) -> float:
    """A cell's own training, in the folder of the cells that share it; the seconds that it took."""
    shared = folder.parent / study.pretraining(cell)
    with locked(shared, ".training"):
        seconds = fit(study, run_config(study, cell, shared, "train"), shared / "train", log)
    for name in ("train", "train.yaml") if shared != folder else ():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path("..", shared.name, name))
    return seconds


@contextlib.contextmanager
def _resources(threads: int) -> Iterator[None]:
    """Run on a number of threads, and give back the memory before the next cell starts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _system() -> dict[str, Any]:
    import torch

    from bamboo.analysis.profiling import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions()}
