"""One cell from start to end: train, follow up, measure, and write its result last."""

import contextlib
import gc
import json
import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from bamboo.files import atomic_write
from bamboo.fit.compose import resolve

from .cells import FAILED, RESULT, cell_folder, checkpoint, write_failure, write_json
from .configs import at, has_key, merge
from .spec import Cell, Study, axis_key

REPLACED = ("SimilarityMonitor", "ReconstructionPanel", "NeighbourProbe", "FilledSentences", "TQDMProgressBar")
"""Callbacks of a configuration that a study does without, for it measures the same itself."""


class NotFinite(ValueError):
    """A cell ended with numbers that are none."""


def run_config(study: Study, cell: Cell, folder: Path, stage: str) -> dict[str, Any]:
    """What `bamboo fit` is run with for a stage of a cell, `train` or `then`: complete, without interpolations."""
    objective = study.objectives[cell.objective]
    base: dict[str, Any] = objective.config if stage == "train" else objective.then or {}
    parts: list[dict[str, Any]] = [
        base,
        {"seed_everything": cell.seed},
        at("model.init_args.shape", asdict(cell.shape)),
    ]
    if stage == "train":
        parts += [at(axis_key(name), value) for name, value in cell.axes]
        if "batch_size" in dict(cell.axes):  # which a recipe's own batch would undo by accumulation
            parts.append(at("model.init_args.recipe.effective_batch", 0))
    else:
        parts.append(at("model.init_args.encoder", str(checkpoint(folder, "train"))))
    parts.append(at("trainer.enable_progress_bar", False))
    parts.append(at("trainer.enable_model_summary", False))
    parts.append({"checkpoint": {"dirpath": str(folder / stage), "save_last": True, "enable_version_counter": False}})
    if has_key(base, "trainer.logger.init_args"):
        logs = {"save_dir": str(folder), "name": stage, "version": "logs"}
        parts.append(at("trainer.logger.init_args", logs))
    kept = [
        one
        for one in base.get("trainer", {}).get("callbacks") or []
        if one["class_path"].split(".")[-1] not in REPLACED
    ]
    if stage == "train":
        points = {"points": study.evaluation.points, "samples": study.evaluation.point_samples}
        record = {"class_path": "bamboo.study.recording.StudyRecord"}
        kept.append({**record, "init_args": {"folder": str(folder / stage), **points}})
    parts.append(at("trainer.callbacks", kept))
    return resolve(merge(*parts), complete=False)


def run_cell(study: Study, cell: Cell, out: Path) -> None:
    """Run a cell, or what is left of it, and write its `result.json`; what it prints goes to its `log.txt`.

    Whatever goes wrong is written to `failed.json` instead, and is not raised.
    """
    folder = cell_folder(out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log, _threads(study.threads):
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                _run(study, cell, folder, log)
        except Exception as error:  # whatever it is, the other cells go on
            import traceback

            traceback.print_exc(file=log)
            write_failure(folder, f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            _tidy()


def _run(study: Study, cell: Cell, folder: Path, log: TextIO) -> None:
    stages = ["train", *(["then"] if study.objectives[cell.objective].then else [])]
    cpu = time.process_time()
    seconds = {stage: _fit(study, cell, folder, stage, log) for stage in stages}
    since = time.perf_counter()
    if study.objectives[cell.objective].reads_text:
        from .text import evaluate
    else:
        from .vision import evaluate
    numbers, cost = evaluate(study, cell, folder)
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(f"{', '.join(bad)} of the trained model is not a number")
    cost |= {f"seconds_{stage}": spent for stage, spent in seconds.items()}
    cost |= {"seconds_evaluation": time.perf_counter() - since, "cpu_seconds": time.process_time() - cpu}
    objective = {"objective": cell.objective, "kind": study.objectives[cell.objective].kind}
    grid = {"label": cell.label, "shape": asdict(cell.shape), "axes": dict(cell.axes), "seed": cell.seed}
    told = {"cell": cell.name, **objective, **grid, "numbers": numbers, "cost": cost, **_where()}
    write_json(folder / RESULT, told)


def _fit(study: Study, cell: Cell, folder: Path, stage: str, log: TextIO) -> float:
    """Train a stage, from its last checkpoint if there is one, unless it is done; the seconds that it took."""
    done = folder / stage / "done.json"
    if done.is_file():
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    path = folder / f"{stage}.yaml"
    with atomic_write(path) as temporary:
        OmegaConf.save(OmegaConf.create(run_config(study, cell, folder, stage)), temporary)
    args = ["fit", "--config", str(path)]
    if checkpoint(folder, stage).is_file():
        args += ["--ckpt_path", str(checkpoint(folder, stage))]
    since = time.perf_counter()
    print(f"bamboo {' '.join(args)}", flush=True)
    if study.launch:
        _launch([*study.launch, *args], log)
    else:
        from bamboo.fit.lightning import run

        run(args)
    seconds = time.perf_counter() - since
    write_json(done, {"seconds": seconds, "resumed": len(args) > 3})
    return seconds


def _launch(command: Sequence[str], log: TextIO) -> None:
    log.flush()
    code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with exit code {code}: see {log.name}")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tidy() -> None:
    """Give back the memory of a cell before the next one starts."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _where() -> dict[str, Any]:
    import torch

    from bamboo.analysis.profiling import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "versions": versions()}
