"""A sweep over tasks and seeds: several runs at a time on the devices there are, each kept once it is finished."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.workers import Report, reason_of, run_tasks, worker_environments

from .recipes import SEARCH, Setting
from .runs import FROM_MNLI, Plan, Run, fine_tune, write_json
from .tasks import Task

SETTINGS = "sweep.json"


def sweep(
    plan: Plan,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    out: Path,
    sizes: Mapping[str, int],
    setting: Setting | None = None,
    workers: int | None = None,
) -> tuple[list[Run], dict[str, str]]:
    """Run what is not finished of every task under every seed.

    Args:
        plan: what all runs have in common.
        tasks: in the order of the table.
        seeds: of each task.
        out: folder of the sweep.
        sizes: number of training examples of each task, for the progress bar.
        setting: hyperparameters of all tasks; None searches for each task, under the first seed, the setting of
            `SEARCH` that is best on the dev set, with which the other seeds are then run; the first one, which chose,
            is not among the runs that are returned.
        workers: runs at a time, see `worker_environments`.

    Returns:
        The finished runs, and what the others failed of, by name.

    Raises:
        InputError: where the folder holds the scores of another sweep.
    """
    environments = _environments(workers)
    _claim(out, plan, setting)
    failures: dict[str, str] = {}
    with tqdm(unit="example", unit_scale=True, total=0, dynamic_ncols=True) as bar:
        finish = partial(_finish, out=out, sizes=sizes, environments=environments, bar=bar)
        chosen: dict[str, Setting | None] = {task.name: setting for task in tasks}
        if setting is None:
            chooser, seeds = seeds[0], seeds[1:]
            grid = [Run(task.name, chooser, each, searched=True) for task in tasks for each in SEARCH]
            failures |= finish(grid, replace(plan, keep_models=False))
            chosen = {name: _best([run for run in grid if run.task == name], out) for name in chosen}
        runs = [
            Run(task.name, seed, best, searched=setting is None)
            for task in tasks
            for seed in seeds
            if (best := chosen[task.name])
        ]
        after_mnli = [run for run in runs if plan.from_mnli and run.task in FROM_MNLI]
        failures |= finish([run for run in runs if run not in after_mnli], plan)
        failures |= finish(after_mnli, plan)
    return [run for run in runs if run.finished(out)], failures


def _environments(workers: int | None) -> list[dict[str, str]]:
    """The variables of each worker: the GPU that it sees, and its share of the threads."""
    environments = worker_environments(workers)
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // len(environments)))}
    return [threads | own for own in environments]


def _finish(
    runs: Sequence[Run],
    plan: Plan,
    out: Path,
    sizes: Mapping[str, int],
    environments: Sequence[Mapping[str, str]],
    bar: "tqdm[Any]",
) -> dict[str, str]:
    """Run what is not finished, the largest first, a single one at a time in this process; what failed of what."""
    failures: dict[str, str] = {}

    def examples(run: Run) -> int:
        return sizes[run.task] * run.setting.epochs

    def ended(run: Run, reason: str | None) -> None:
        if reason:
            failures[run.name] = reason
            bar.write(f"{run.name} failed: {reason}")

    left = [run for run in runs if not run.finished(out)]
    bar.total = (bar.total or 0) + sum(map(examples, left))
    bar.refresh()
    if len(environments) > 1:
        run_tasks(partial(_work, plan, out), sorted(left, key=examples, reverse=True), environments, ended, bar)
        return failures
    for run in left:
        bar.set_postfix_str(run.name)
        try:
            fine_tune(plan, run, out, bar.update)
        except Exception as error:  # one that fails leaves the others
            ended(run, reason_of(error))
    return failures


def _work(plan: Plan, out: Path, run: Run, report: Report) -> None:
    fine_tune(plan, run, out, report)


def _claim(out: Path, plan: Plan, setting: Setting | None) -> None:
    """Write down what the scores in a folder come from, or check that it is the same."""
    settings = {**asdict(plan), "search": setting is None, **(asdict(setting) if setting else {})}
    settings["encoder_digest"] = _digest(plan.encoder)
    del settings["keep_models"]  # it changes no score
    path = out / SETTINGS
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: remove the folder or give another --out") from error
    for name in dict.fromkeys([*settings, *saved]):
        if saved.get(name) != settings.get(name):
            raise InputError(
                f"{out} holds scores with {name} {saved.get(name)}, and now {name} is {settings.get(name)}: "
                "give another --out"
            )


def _digest(encoder: str) -> str | None:
    """What tells the weights of a file or folder from those that were there before; None for a name on the hub."""
    place = Path(encoder.removeprefix("hf:"))
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors")) + sorted(place.glob("*.bin"))
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest() if files else None


def _best(runs: Sequence[Run], out: Path) -> Setting | None:
    """The setting with the best score; None where all failed. Of equally good ones the first."""
    scored = [(run.read(out)["score"], run.setting) for run in runs if run.finished(out)]
    known = [(score, setting) for score, setting in scored if score is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None
