"""Cells from start to end: train, follow up, measure, and write the result last; several cells at a time."""

import contextlib
import fcntl
import gc
import math
import re
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf
from tqdm import tqdm

from bamboo.errors import Diverged
from bamboo.files import atomic_write
from bamboo.fit.compose import resolve, select
from bamboo.workers import Report, reason_of, run_tasks

from .budget import budgeted
from .changes import set_keys
from .folders import FAILED, RESULT, cell_folder, cell_state, checkpoint, read_json, write_failure, write_json
from .spec import Cell, Study, axis_key, has_key
from .tuning import choose, chosen

REPLACED = ("SimilarityMonitor", "ReconstructionPanel", "NeighbourProbe", "FilledSentences", "TQDMProgressBar")
"""Callbacks of a configuration that a study does without, for it measures the same itself."""


DIVERGED = re.compile(r"^bamboo: error: (?!.*the batch's)(.* is not finite .*)$", re.MULTILINE)
"""What `bamboo fit` prints where it raises `Diverged`."""


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
    with locked(folder):
        if cell_state(folder) != "done":
            run_cell(study, cell, folder)


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Have a folder to oneself: another process that wants it waits. It ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def fit(study: Study, config: dict[str, Any], folder: Path, log: TextIO) -> float:
    """Train by a resolved configuration, from the last checkpoint in `folder` if there is one, unless it is done.

    The configuration is kept beside the folder. Returns the seconds that training took.
    """
    done, path, last = folder / "done.json", folder.with_suffix(".yaml"), folder / "last.ckpt"
    if done.is_file():
        return float(read_json(done)["seconds"])
    with atomic_write(path) as temporary:
        OmegaConf.save(OmegaConf.create(config), temporary)
    args = ["fit", "--config", str(path)]
    if resumed := last.is_file():
        args += ["--ckpt_path", str(last)]
    since = time.perf_counter()
    print(f"bamboo {' '.join(args)}", flush=True)
    if study.launch:
        launch([*study.launch, *args], log)
    else:
        from bamboo.fit.lightning import run

        run(args)
    seconds = time.perf_counter() - since
    write_json(done, {"seconds": seconds, "resumed": resumed})
    return seconds


def run_config(study: Study, cell: Cell, folder: Path, stage: str, recorders: bool = True) -> dict[str, Any]:
    """What `bamboo fit` is run with for a stage of a cell, `train` or `then`: complete, without interpolations.

    `folder` is that of the cell, or of the cells that share its training, which without `recorders` is not measured.
    """
    objective = study.objectives[cell.objective]
    changes: dict[str, Any] = {
        "seed_everything": cell.seed,
        "model.init_args.shape": asdict(cell.shape),
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "checkpoint": {"dirpath": str(folder / stage), "save_last": True, "enable_version_counter": False},
    }
    for name, value in cell.axes:
        if study.stage_of(cell.objective, name) == stage:
            changes[axis_key(name)] = [*value] if isinstance(value, tuple) else value
    if stage == "train":
        changes |= chosen(study, cell, folder.parent.parent)
        config, callbacks = objective.config, _recorders(study, folder / stage) if recorders else []
        if "batch_size" in dict(cell.axes):  # which a recipe's own batch would undo by accumulation
            changes["model.init_args.recipe.effective_batch"] = 0
    else:
        config, callbacks = objective.then or {}, []
        changes["model.init_args.encoder"] = str(checkpoint(folder, "train"))
    kept = [
        callback
        for callback in select(config, "trainer.callbacks") or []
        if callback["class_path"].split(".")[-1] not in REPLACED
    ]
    changes["trainer.callbacks"] = [*kept, *callbacks]
    if has_key(config, "trainer.logger.init_args"):
        changes["trainer.logger.init_args"] = {"save_dir": str(folder), "name": stage, "version": "logs"}
    return budgeted(study, cell, stage, resolve(set_keys(config, changes), complete=False))


def _recorders(study: Study, folder: Path) -> list[dict[str, Any]]:
    looks = {"points": study.evaluation.points, "held_out": study.evaluation.point_samples}
    return [
        {"class_path": "bamboo.analysis.monitor.SimilarityMonitor", "init_args": looks},
        {"class_path": "bamboo.study.recording.StudyRecord", "init_args": {"folder": str(folder)}},
    ]


def launch(command: Sequence[str], log: TextIO) -> None:
    """Train by a command that prints to a log. Raises `Diverged`, or `RuntimeError` where it fails otherwise."""
    log.flush()
    path = Path(log.name)
    before = path.stat().st_size
    code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        if line := DIVERGED.search(path.read_bytes()[before:].decode(errors="replace")):
            raise Diverged(line[1])
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with exit code {code}: see {log.name}")


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
