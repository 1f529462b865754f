"""Scores of a sweep over its seeds: files, a table, a figure, and two of them side by side."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .tasks import TASKS, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = "scores.json"
EIGHT = tuple(name for name in TASKS if name != "wnli")
"""The tasks that averages are taken over."""


@dataclass(frozen=True)
class Spread:
    """Values over seeds: median, smallest and largest; NaN where one of them is not defined."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Of the values of all seeds."""
        known = np.array([math.nan if value is None else value for value in values])
        return cls(float(np.median(known)), float(known.min()), float(known.max()))


@dataclass(frozen=True)
class TaskScores:
    """What a task scored.

    Args:
        name: of the task.
        score: its summary, see `bamboo.finetune.glue.metrics.headline`.
        metrics: each metric, named with its split where there are several.
        majority: what always saying the most frequent class scores, by metric.
        seeds: which seeds were run.
        train: number of training examples.
        dev: number of examples evaluated on, by split.
        seconds: median time of a seed.
        setting: hyperparameters.
    """

    name: str
    score: Spread
    metrics: dict[str, Spread]
    majority: dict[str, float]
    seeds: tuple[int, ...]
    train: int
    dev: dict[str, int]
    seconds: float
    setting: dict[str, float]


@dataclass(frozen=True)
class Scores:
    """What an encoder scored.

    Args:
        encoder: its name.
        tasks: in the order of the table.
    """

    encoder: str
    tasks: tuple[TaskScores, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of the eight tasks are not there."""
        return tuple(name for name in EIGHT if name not in {task.name for task in self.tasks})

    @property
    def average(self) -> float:
        """The mean over the eight tasks of the median over seeds; NaN where one is missing."""
        return math.nan if self.missing else float(np.mean([t.score.median for t in self.tasks if t.name in EIGHT]))

    @classmethod
    def read(cls, run: Path) -> "Scores":
        """The scores in the folder of a sweep. Raises `InputError` where there are none."""
        path = run / SCORES if run.is_dir() else run
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tasks = []
            for told in content["tasks"]:
                metrics = {name: _spread(value) for name, value in told["metrics"].items()}
                fixed = {"score": _spread(told["score"]), "metrics": metrics, "seeds": tuple(told["seeds"])}
                tasks.append(TaskScores(**{**told, **fixed, "majority": _numbers(told["majority"])}))
            return cls(content["encoder"], tuple(tasks))
        except OSError as error:
            raise InputError(f"{run} holds no {SCORES}: give the folder of a finished `bamboo glue`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not what `bamboo glue` writes: {type(error).__name__} {error}") from error


def _spread(told: Mapping[str, float | None]) -> Spread:
    return Spread(**_numbers(told))


def _numbers(told: Mapping[str, float | None]) -> dict[str, float]:
    """JSON has no NaN: it is null there."""
    return {name: math.nan if value is None else value for name, value in told.items()}


def summarise(
    task: Task,
    cells: Sequence[Mapping[str, Any]],
    majority: Mapping[str, Mapping[str, float]],
    train: int,
    dev: Mapping[str, int],
) -> TaskScores:
    """Bring the seeds of a task together.

    Args:
        task: which task.
        cells: what `run_cell` wrote for each seed.
        majority: by split, what always saying the most frequent class scores.
        train: number of training examples.
        dev: number of examples by split.
    """
    names = {(split, metric): metric_name(metric, split) for split, values in majority.items() for metric in values}
    spreads = {
        name: Spread.of([cell["metrics"][split][metric] for cell in cells]) for (split, metric), name in names.items()
    }
    return TaskScores(
        task.name,
        Spread.of([cell["score"] for cell in cells]),
        spreads,
        {name: majority[split][metric] for (split, metric), name in names.items()},
        tuple(cell["seed"] for cell in cells),
        train,
        dict(dev),
        float(np.median([cell["seconds"] for cell in cells])),
        dict(cells[0]["setting"]),
    )


def metric_name(metric: str, split: str) -> str:
    """`accuracy`, or with the split where a task has several: `accuracy (matched)`."""
    _, several, kind = split.partition("_")
    return f"{metric} ({kind})" if several else metric


def write_scores(scores: Scores, out: Path) -> list[Path]:
    """Write scores.json, scores.csv, scores.md, scores.png and scores.svg; returns their paths."""
    from bamboo.analysis.plots import save_figure

    from .cells import write_json

    write_json(out / SCORES, {**asdict(scores), "average": scores.average, "missing": scores.missing})
    table, page = out / "scores.csv", out / "scores.md"
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "metric", "median", "low", "high", "majority", "seeds", "train", "dev", "seconds"))
        writer.writerows(_csv_rows(scores))
    with atomic_write(page) as temporary:
        temporary.write_text(f"{markdown(scores)}\n", encoding="utf-8")
    return [out / SCORES, table, page, *save_figure(draw(scores), out / "scores")]


def _csv_rows(scores: Scores) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for task in scores.tasks:
        common = [len(task.seeds), task.train, sum(task.dev.values()), f"{task.seconds:.1f}"]
        rows += [
            [task.name, name, *(f"{value:.6f}" for value in (spread.median, spread.low, spread.high)), bar, *common]
            for name, spread in task.metrics.items()
            for bar in [f"{task.majority[name]:.6f}"]
        ]
    return rows


def markdown(scores: Scores) -> str:
    """The table, and the average or what is missing for it."""
    header = ("task", "metric", "median", "min to max", "majority", "seeds", "train", "dev", "time per seed")
    rows = []
    for task in scores.tasks:
        for number, (name, spread) in enumerate(task.metrics.items()):
            size = task.dev.get(f"dev_{name[:-1].rpartition('(')[2]}") or sum(task.dev.values())
            common = (str(len(task.seeds)), f"{task.train:,}", f"{size:,}", "" if number else duration(task.seconds))
            numbers = (percent(spread.median), between(spread), percent(task.majority[name]))
            rows.append((TASKS[task.name].title if not number else "", name, *numbers, *common))
    if scores.missing:
        titles = ", ".join(TASKS[name].title for name in scores.missing)
        end = f"No average over the eight tasks: {titles} missing."
    else:
        end = f"Average over the eight tasks: {percent(scores.average)}, the mean of their medians; {_counting()}."
    return f"{scores.encoder}, in percent\n\n{table([header, *rows])}\n\n{end}"


def _counting() -> str:
    return "a task with several numbers counts as their mean"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the header, columns but the first two are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(aligned)} |"

    rule = "|".join(f"{'-' * (width + 1)}{'-' if i < 2 else ':'}" for i, width in enumerate(widths))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def percent(value: float) -> str:
    """A share in percent with one decimal; `undefined` for NaN."""
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"


def between(spread: Spread) -> str:
    """Smallest to largest, in percent."""
    return f"{percent(spread.low)} to {percent(spread.high)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def summary(task: TaskScores) -> tuple[Spread, float]:
    """A task's summary, and what the majority would have."""
    return task.score, float(np.mean(list(task.majority.values())))


def draw(scores: Scores) -> "Figure":
    """The summary of every task: median, smallest and largest over seeds, and the majority baseline."""
    return bars([scores], [scores.encoder])


def bars(runs: Sequence[Scores], labels: Sequence[str]) -> "Figure":
    """A group of bars for each task, a bar for each run: the median, whiskers from smallest to largest."""
    from matplotlib.figure import Figure

    from bamboo.analysis.plots import COLOURS, style

    names = [name for name in TASKS if any(name == task.name for run in runs for task in run.tasks)]
    width = 0.7 / len(runs)
    with style():
        figure = Figure(figsize=(1.6 + 0.75 * len(names) + 0.25 * len(runs), 3.2), layout="constrained")
        axis = figure.subplots()
        for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
            for task in run.tasks:
                at, (score, majority) = names.index(task.name) + (number - (len(runs) - 1) / 2) * width, summary(task)
                if math.isnan(score.median):
                    continue
                error = [[100 * (score.median - score.low)], [100 * (score.high - score.median)]]
                look = {"width": 0.92 * width, "color": COLOURS[number], "alpha": 0.85}
                axis.bar(at, 100 * score.median, yerr=error, capsize=3, error_kw={"linewidth": 1}, **look)
                if not math.isnan(majority):
                    axis.hlines(100 * majority, at - width / 2, at + width / 2, color="black", linestyle=":")
            axis.bar(0, 0, color=COLOURS[number], alpha=0.85, label=label)
        axis.plot([], [], color="black", linestyle=":", label="majority")
        axis.set_xticks(range(len(names)), [TASKS[name].title for name in names])
        axis.set_ylabel("score (percent)")
        axis.grid(visible=False, axis="x")
        axis.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(len(runs) + 1, 4))
    return figure
