"""A sweep over tasks and seeds: cells side by side on the devices there are, each kept once it is finished."""

import contextlib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bamboo.errors import InputError

from .cells import FROM_MNLI, Cell, Plan, run_cell, write_json
from .recipes import SEARCH, Setting
from .tasks import Task

SETTINGS = "sweep.json"


@dataclass(frozen=True)
class Places:
    """Where cells run.

    Args:
        count: cells at a time.
        gpus: whether each has a GPU, of its own number, to itself.
        threads: of a process on the CPU; None leaves torch's own number.
    """

    count: int = 1
    gpus: bool = False
    threads: int | None = None

    @classmethod
    def found(cls, workers: int | None = None) -> "Places":
        """One process per GPU; without one, `workers` processes that share the threads, one by default.

        Raises:
            InputError: where that many workers cannot be.
        """
        if workers is not None and workers < 1:
            raise InputError(f"workers must be at least 1, got {workers}")
        gpus = torch.cuda.device_count()
        if gpus:
            return cls(min(workers or gpus, gpus), gpus=True)
        count = workers or 1
        return cls(count, threads=None if count == 1 else max(1, torch.get_num_threads() // count))


def sweep(
    plan: Plan,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    out: Path,
    sizes: Mapping[str, int],
    setting: Setting | None = None,
    places: Places = Places(),
) -> tuple[list[Cell], dict[str, str]]:
    """Run what is not finished of every task under every seed.

    Args:
        plan: what all cells have in common.
        tasks: in the order of the table.
        seeds: of each task.
        out: folder of the sweep.
        sizes: number of training examples of each task, for the progress bar.
        setting: hyperparameters of all tasks; None searches for each task, under the first seed, the setting of
            `SEARCH` that is best on the dev set, with which the other seeds are then run; the first one, which chose,
            is not among the cells that are returned.
        places: where cells run.

    Returns:
        The finished cells, and what the others failed of, by name.

    Raises:
        InputError: where the folder holds the scores of another sweep.
    """
    _claim(out, plan, setting)
    failures: dict[str, str] = {}
    with _Runner(out, sizes, places) as run:
        chosen: dict[str, Setting | None] = {task.name: setting for task in tasks}
        if setting is None:
            chooser, seeds = seeds[0], seeds[1:]
            grid = {task.name: [Cell(task.name, chooser, each, searched=True) for each in SEARCH] for task in tasks}
            failures |= run.cells(list(chain(*grid.values())), replace(plan, keep_models=False))
            chosen = {name: _best(cells, out) for name, cells in grid.items()}
        cells = [
            Cell(task.name, seed, best, searched=setting is None)
            for task in tasks
            for seed in seeds
            if (best := chosen[task.name])
        ]
        late = [cell for cell in cells if plan.from_mnli and cell.task in FROM_MNLI]
        failures |= run.cells([cell for cell in cells if cell not in late], plan)
        failures |= run.cells(late, plan)
    return [cell for cell in cells if cell.finished(out)], failures


def _claim(out: Path, plan: Plan, setting: Setting | None) -> None:
    """Write down what the scores in a folder come from, or check that it is the same."""
    told = {**asdict(plan), "search": setting is None, **(asdict(setting) if setting else {})}
    told["encoder_digest"] = _digest(plan.encoder)
    told.pop("keep_models")  # it changes no score
    path = out / SETTINGS
    if not path.is_file():
        write_json(path, told)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: remove the folder or give another --out") from error
    for name in [*told, *(name for name in there if name not in told)]:
        if there.get(name) != told.get(name):
            raise InputError(
                f"{out} holds scores with {name} {there.get(name)}, and now {name} is {told.get(name)}: "
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


def _best(cells: Sequence[Cell], out: Path) -> Setting | None:
    """The setting with the best score; None where all failed. Of equally good ones the first."""
    scored = [(cell.read(out)["score"], cell.setting) for cell in cells if cell.finished(out)]
    known = [(score, setting) for score, setting in scored if score is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


class _Runner:
    """Runs cells, one after the other in this process or side by side in processes of their own, under a bar."""

    def __init__(self, out: Path, sizes: Mapping[str, int], places: Places) -> None:
        self.out, self.sizes, self.places = out, sizes, places

    def __enter__(self) -> "_Runner":
        self.bar = tqdm(unit="example", unit_scale=True, total=0, dynamic_ncols=True)
        self.total = 0
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def cells(self, cells: Sequence[Cell], plan: Plan) -> dict[str, str]:
        """Run those that are not finished; returns what failed of what."""
        self.plan, open_cells = plan, [cell for cell in cells if not cell.finished(self.out)]
        self.total += sum(map(self._cost, open_cells))
        self.bar.total = self.total
        self.bar.refresh()
        run = self._one_by_one if self.places.count == 1 else self._side_by_side
        return run(open_cells)

    def _advance(self, examples: int) -> None:
        self.bar.update(examples)

    def _cost(self, cell: Cell) -> int:
        return self.sizes[cell.task] * cell.setting.epochs

    def _one_by_one(self, cells: Sequence[Cell]) -> dict[str, str]:
        failures = {}
        for cell in cells:
            self.bar.set_description(cell.name)
            try:
                run_cell(self.plan, cell, self.out, 0 if self.places.gpus else None, self._advance)
            except Exception as error:  # one that fails leaves the others
                failures[cell.name] = _reason(error)
                self.bar.write(f"{cell.name} failed: {failures[cell.name]}")
        return failures

    def _side_by_side(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Each cell in a process of its own, whose death costs that cell alone; the largest first."""
        context = _context()
        messages = context.SimpleQueue()
        waiting = deque(sorted(cells, key=self._cost, reverse=True))
        running: dict[int, tuple[Any, Cell]] = {}
        failures: dict[str, str] = {}
        try:
            while waiting or running:
                for place in [number for number in range(self.places.count) if number not in running][: len(waiting)]:
                    cell, gpu = waiting.popleft(), place if self.places.gpus else None
                    arguments = (self.plan, cell, self.out, gpu, self.places.threads, messages)
                    process = context.Process(target=_work, args=arguments, daemon=True)
                    process.start()
                    running[place] = (process, cell)
                self.bar.set_description(", ".join(cell.name for _, cell in running.values()))
                next(iter(running.values()))[0].join(timeout=0.2)
                ended = {place: one for place, one in running.items() if not one[0].is_alive()}
                self._listen(messages, failures)
                for place, (process, cell) in ended.items():
                    del running[place]
                    if process.exitcode and cell.name not in failures:
                        failures[cell.name] = f"its process ended with code {process.exitcode}"
                        self.bar.write(f"{cell.name} failed: {failures[cell.name]}")
        finally:
            for process, _ in running.values():
                process.terminate()
        return failures

    def _listen(self, messages: Any, failures: dict[str, str]) -> None:
        while not messages.empty():
            message = messages.get()
            if isinstance(message, int):
                self._advance(message)
            else:
                failures[message[0]] = message[1]
                self.bar.write(f"{message[0]} failed: {message[1]}")


def _context() -> Any:
    """Processes that start from one that has imported everything and done nothing yet, where the system has them."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([run_cell.__module__])
    return context


def _work(plan: Plan, cell: Cell, out: Path, gpu: int | None, threads: int | None, messages: Any) -> None:
    """What a process of its own does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        torch.set_num_threads(threads)
    try:
        with contextlib.redirect_stdout(None):
            run_cell(plan, cell, out, gpu, messages.put)
    except Exception as error:
        messages.put((cell.name, _reason(error)))


def _end_with_parent() -> None:
    """A sweep that is killed leaves no process behind."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0]}"
