"""Finished runs, from tables and from the folders that `bamboo fit` and `bamboo study` write."""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bamboo.errors import InputError

from .folders import read_folder

TOLERANCE = 0.05
ALIASES = {"data": ("data", "samples", "tokens")}
REQUIRED = ("parameters", "data", "loss")
NUMBERS = ("parameters", "data", "loss", "batch_size", "learning_rate", "tokens_per_sample", "compute")

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Run:
    """One finished training run.

    Args:
        parameters: N.
        data: D, samples or tokens seen, all epochs counted.
        loss: at the end, on held-out data.
        batch_size: samples or tokens in one optimizer step, in the unit of `data`.
        learning_rate: peak of the schedule.
        tokens_per_sample: tokens that the N parameters see of each unit of D; 1 where D counts tokens.
        compute: FLOPs of training; 6 N D tokens_per_sample where it is left out.
        seed: of the run.
        name: for tables and messages.

    Raises:
        InputError: for numbers that are not positive and finite.
    """

    parameters: float
    data: float
    loss: float
    batch_size: float | None = None
    learning_rate: float | None = None
    tokens_per_sample: float = 1.0
    compute: float = field(default=0.0)
    seed: int | None = None
    name: str = "run"

    def __post_init__(self) -> None:
        if not self.compute:
            object.__setattr__(self, "compute", 6.0 * self.parameters * self.data * self.tokens_per_sample)
        for key in NUMBERS:
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{self.name}: {key} must be positive and finite, got {value}")


def read_runs(paths: Iterable[str | Path], loss: str = "val/loss") -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Runs of tables and folders, and a line for each run that is left out because it failed or is not finished.

    Args:
        paths: CSV files with the columns parameters, data (or samples, or tokens) and loss, and if known batch_size,
            learning_rate, tokens_per_sample, compute, seed, name; or folders with runs of `bamboo fit` or studies
            anywhere below them.
        loss: name under which `bamboo fit` logged the loss; its last value counts.

    Raises:
        InputError: naming the file, line and column, or the folder, that cannot be used.
    """
    runs: list[Run] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            found, left_out = read_folder(path, loss)
            runs += [_run(row, str(row["name"])) for row in found]
            skipped += left_out
        elif path.is_file():
            runs += _read_csv(path)
        else:
            raise InputError(f"{path} is missing: give CSV files or folders of runs")
    if not runs:
        raise InputError("no finished run was found" + (f": {skipped[0]}" if skipped else ""))
    return tuple(runs), tuple(skipped)


def _read_csv(path: Path) -> list[Run]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = [column.strip() for column in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file: give a table with the columns {', '.join(REQUIRED)}") from error
    missing = [key for key in REQUIRED if not set(ALIASES.get(key, (key,))) & set(columns)]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}: it has {', '.join(columns) or 'none'}")
    if not rows:
        raise InputError(f"{path} holds no runs: give one line for each")
    texts = (({(k or "").strip(): v for k, v in row.items()}, f"{path} line {line}") for line, row in rows)
    return [_run(row, place) for row, place in texts]


def _run(row: dict[str, Any], place: str) -> Run:
    """A run of a row of texts or numbers; empty entries are as good as absent."""
    values: dict[str, Any] = {}
    for key in (*NUMBERS, "seed", "name"):
        texts = (row.get(alias) for alias in ALIASES.get(key, (key,)))
        text = next((text for text in texts if text not in (None, "")), None)
        if text is None and key in REQUIRED:
            raise InputError(f"{place}: {key} is missing")
        if text is not None:
            values[key] = text if key == "name" else _number(text, key, place)
    if values.get("compute") == 0:
        raise InputError(f"{place}: compute must be positive, or left out for 6 N D tokens_per_sample")
    name = str(values.pop("name", place))
    try:
        return Run(**values, name=name)
    except InputError as error:
        raise InputError(str(error) if name == place else f"{place}: {error}") from error


def _number(text: Any, key: str, place: str) -> float | int:
    try:
        return int(float(text)) if key == "seed" else float(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: {key} must be a number, got {text!r}") from error


def tuned(runs: Sequence[Run], tolerance: float = TOLERANCE) -> tuple[Run, ...]:
    """Of each N and D, the runs with the batch size and learning rate that do best, all seeds of them.

    Amounts of data that differ by no more than the tolerance are the same: a whole number of steps is some samples off.
    """
    chosen: list[Run] = []
    for cell in by_cell(runs, tolerance):
        settings = group(cell, lambda run: (run.batch_size, run.learning_rate))
        best = min((mean_loss(same), i) for i, same in enumerate(settings.values()))[1]
        chosen += list(settings.values())[best]
    return tuple(chosen)


def by_cell(runs: Sequence[Run], tolerance: float = TOLERANCE) -> list[list[Run]]:
    """Runs of the same N and D, by N, then by D."""
    sizes = group(sorted(runs, key=lambda run: run.parameters), lambda run: run.parameters)
    return [cell for size in sizes.values() for cell in close(size, lambda run: run.data, tolerance)]


def close(runs: Sequence[Run], value: Callable[[Run], float], tolerance: float = TOLERANCE) -> list[list[Run]]:
    """Runs whose values differ by no more than the tolerance, by rising value."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=value):
        if groups and value(run) <= (1 + tolerance) * value(groups[-1][0]):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def group(things: Iterable[Thing], key: Callable[[Thing], Any]) -> dict[Any, list[Thing]]:
    """Things by key, in order of appearance."""
    groups: dict[Any, list[Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def mean_loss(runs: Sequence[Run]) -> float:
    """Geometric mean of the losses, so that seeds count alike."""
    return math.exp(sum(math.log(run.loss) for run in runs) / len(runs))
