"""Scores of a sweep over its seeds: a table of all values, its summary, and a figure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .tasks import TASKS, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = "scores.json"
SCORE = "score"
"""What the one number of a task is called among its metrics."""

EIGHT = tuple(name for name in TASKS if name != "wnli")
"""The tasks that averages are taken over."""

COLUMNS = ("task", "metric", "seed", "value", "majority", "train", "dev", "seconds", "setting")


@dataclass(frozen=True)
class Scores:
    """What an encoder scored.

    Args:
        encoder: its name.
        values: a row for each task, metric and seed, with the columns of `COLUMNS`: `majority` is what always saying
            the most frequent class scores, `train` and `dev` are numbers of examples.
    """

    encoder: str
    values: pd.DataFrame

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of the eight tasks are not there."""
        return tuple(name for name in EIGHT if name not in set(self.values["task"]))

    @property
    def average(self) -> float:
        """The mean over the eight tasks of the median over seeds; NaN where one is missing or not defined."""
        medians = self.summary().xs(SCORE, level="metric")["median"]
        return math.nan if self.missing else float(medians[list(EIGHT)].mean(skipna=False))

    def summary(self) -> pd.DataFrame:
        """By task and metric: median, smallest and largest value over seeds, and what else is known of the task.

        A value that is not defined for one seed is not defined for all.
        """
        return self.values.groupby(["task", "metric"], sort=False).agg(
            median=("value", lambda values: values.median(skipna=False)),
            low=("value", lambda values: values.min(skipna=False)),
            high=("value", lambda values: values.max(skipna=False)),
            majority=("majority", "first"),
            seeds=("seed", "count"),
            train=("train", "first"),
            dev=("dev", "first"),
            seconds=("seconds", "median"),
            setting=("setting", "first"),
        )

    @classmethod
    def read(cls, run: Path) -> "Scores":
        """The scores in the folder of a sweep. Raises `InputError` where there are none."""
        path = run / SCORES if run.is_dir() else run
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            values = pd.DataFrame(content["values"])[list(COLUMNS)]
            return cls(content["encoder"], values.astype({"value": float, "majority": float}))
        except OSError as error:
            raise InputError(f"{run} holds no {SCORES}: give the folder of a finished `bamboo glue`") from error
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise InputError(
                f"{path} is not what `bamboo glue` writes ({reason}): type its command again, which trains nothing anew"
            ) from error


def collect(encoder: str, cells: Mapping[Task, Sequence[Mapping[str, Any]]], read: Mapping[str, Any]) -> Scores:
    """Bring the seeds of all tasks together.

    Args:
        encoder: its name.
        cells: by task, what `run_cell` wrote for each seed.
        read: by name of the task, its numbers of examples (`train`, and `dev` by split), and by split and metric the
            `majority` baseline.
    """
    rows = []
    for task, seeds in cells.items():
        size, majority = read[task.name], read[task.name]["majority"]
        bars = [score for scores in majority.values() for score in scores.values()]
        for cell in seeds:
            each = [
                (metric_name(metric, split), value, majority[split][metric], size["dev"][split])
                for split, values in cell["metrics"].items()
                for metric, value in values.items()
            ]
            each.append((SCORE, cell["score"], sum(bars) / len(bars), sum(size["dev"].values())))
            rows += [
                (
                    task.name,
                    name,
                    cell["seed"],
                    value,
                    bar,
                    size["train"],
                    dev,
                    cell["seconds"],
                    _words(cell["setting"]),
                )
                for name, value, bar, dev in each
            ]
    values = pd.DataFrame(rows, columns=list(COLUMNS))
    return Scores(encoder, values.astype({"value": float, "majority": float}))


def _words(setting: Mapping[str, float]) -> str:
    return f"lr {setting['lr']:g}, batch {setting['batch_size']}, {setting['epochs']} epochs"


def metric_name(metric: str, split: str) -> str:
    """`accuracy`, or with the split where a task has several: `accuracy (matched)`."""
    _, several, kind = split.partition("_")
    return f"{metric} ({kind})" if several else metric


def write_scores(scores: Scores, out: Path) -> list[Path]:
    """Write scores.json, scores.csv, scores.md, scores.png and scores.svg; returns their paths."""
    from bamboo.analysis.plots import save_figure

    from .cells import write_json

    content = {"encoder": scores.encoder, "average": scores.average, "missing": scores.missing}
    write_json(out / SCORES, {**content, "values": scores.values.to_dict("records")})
    write_table(scores.summary().drop(SCORE, level="metric").reset_index(), out / "scores.csv")
    write_text(markdown(scores), out / "scores.md")
    figure = bars([scores], [scores.encoder])
    return [out / SCORES, out / "scores.csv", out / "scores.md", *save_figure(figure, out / "scores")]


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV with six decimals."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")


def write_text(text: str, path: Path) -> None:
    """Write a page."""
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def markdown(scores: Scores) -> str:
    """The table, and the average or what is missing for it."""
    rows = scores.summary().drop(SCORE, level="metric").reset_index()
    first = ~rows["task"].duplicated()
    shown = pd.DataFrame(
        {
            "task": rows["task"].map(lambda name: TASKS[name].title).where(first, ""),
            "metric": rows["metric"],
            "median": rows["median"].map(percent),
            "min to max": [f"{percent(low)} to {percent(high)}" for low, high in zip(rows.low, rows.high, strict=True)],
            "majority": rows["majority"].map(percent),
            "seeds": rows["seeds"].map(str),
            "train": rows["train"].map("{:,}".format),
            "dev": rows["dev"].map("{:,}".format),
            "time per seed": rows["seconds"].map(duration).where(first, ""),
        }
    )
    end = f"Average over the eight tasks: {percent(scores.average)}, the mean of their medians; {COUNTING}."
    if scores.missing:
        end = f"No average over the eight tasks: {', '.join(TASKS[name].title for name in scores.missing)} missing."
    return f"{scores.encoder}, in percent\n\n{markdown_table(shown)}\n\n{end}"


COUNTING = "a task with several numbers counts as their mean"


def markdown_table(table: pd.DataFrame) -> str:
    """A Markdown table with aligned columns of words; columns but the first two are numbers."""
    columns = [[name, *map(str, table[name])] for name in table]
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.ljust(width) if number < 2 else cell.rjust(width) for cell in column]
        for number, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    header, *lines = (f"| {' | '.join(cells)} |" for cells in zip(*padded, strict=True))
    rule = "|".join(f"{'-' * (width + 1)}{'-' if i < 2 else ':'}" for i, width in enumerate(widths))
    return "\n".join([header, f"|{rule}|", *lines])


def percent(value: float) -> str:
    """A share in percent with one decimal; `undefined` for NaN."""
    return "undefined" if math.isnan(value) else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def bars(runs: Sequence[Scores], labels: Sequence[str]) -> "Figure":
    """A group of bars for each task, a bar for each run: the median, whiskers from smallest to largest."""
    from matplotlib.figure import Figure

    from bamboo.analysis.plots import COLOURS, style

    found = {name for run in runs for name in run.values["task"]}
    names, width = [name for name in TASKS if name in found], 0.7 / len(runs)
    with style():
        figure = Figure(figsize=(1.6 + 0.75 * len(names) + 0.25 * len(runs), 3.2), layout="constrained")
        axis = figure.subplots()
        for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
            rows = run.summary().xs(SCORE, level="metric")
            place = pd.Series(rows.index.map(names.index), rows.index) + (number - (len(runs) - 1) / 2) * width
            ends = [100 * (rows["median"] - rows["low"]), 100 * (rows["high"] - rows["median"])]
            look = {"width": 0.92 * width, "color": COLOURS[number], "alpha": 0.85, "label": label}
            axis.bar(place, 100 * rows["median"], yerr=ends, capsize=3, error_kw={"linewidth": 1}, **look)
            axis.hlines(100 * rows["majority"], place - width / 2, place + width / 2, color="black", linestyle=":")
        axis.plot([], [], color="black", linestyle=":", label="majority")
        axis.set_xticks(range(len(names)), [TASKS[name].title for name in names])
        axis.set_ylabel("score (percent)")
        axis.grid(visible=False, axis="x")
        axis.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=min(len(runs) + 1, 4))
    return figure
