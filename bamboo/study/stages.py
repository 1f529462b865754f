"""The stages of a cell, its own training and what follows: what `bamboo fit` is run with, and running it."""

import contextlib
import fcntl
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from bamboo.errors import Diverged
from bamboo.files import atomic_write, read_json, write_json
from bamboo.fit.compose import resolve, select

from .budget import budgeted
from .changes import set_keys
from .folders import checkpoint, chosen
from .spec import Cell, Study, axis_key, has_key

REPLACED = (
    *("SimilarityMonitor", "ReconstructionPanel", "NeighbourProbe", "LinearProbe"),
    *("FilledSentences", "TQDMProgressBar"),
)
"""Callbacks of a configuration that a study does without, for it measures the same itself."""

DIVERGED = re.compile(r"^bamboo: error: (?!.*the batch's)(.* is not finite .*)$", re.MULTILINE)
"""What `bamboo fit` prints where it raises `Diverged`."""


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Have a folder to oneself: another process that wants it waits. It ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def run_config(
    study: Study, cell: Cell, folder: Path, stage: str, tried: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `bamboo fit` is run with for a stage of a cell, `train` or `then`: complete, without interpolations.

    `folder` is that of the cell, or of the cells that share its training, which is not measured where values are
    `tried` in place of those that were chosen.
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
        changes |= chosen(study, cell, folder.parent.parent) if tried is None else tried
        config, callbacks = objective.config, _recorders(study, folder / stage) if tried is None else []
        if axis_key("batch_size") in changes:  # which a recipe's own batch would undo by accumulation
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
