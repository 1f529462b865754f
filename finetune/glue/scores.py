"""Scores of a sweep over its seeds: a table of all values, its summary, and a figure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bamboo.errors import InputError
from bamboo.files import write_text

from .metrics import headline
from .recipes import Setting
from .tasks import EIGHT, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = "scores.json"
SCORE = "score"
"""What the one number of a task is called among its metrics."""

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
            return cls(content["encoder"], _frame(content["values"]))
        except OSError as error:
            raise InputError(f"{run} holds no {SCORES}: give the folder of a finished `bamboo glue`") from error
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}"
            raise InputError(
                f"{path} is not what `bamboo glue` writes ({reason}): type its command again, which trains nothing anew"
            ) from error


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows)[list(COLUMNS)].astype({"value": float, "majority": float})


def collect(encoder: str, cells: Iterable[Mapping[str, Any]], sizes: Mapping[str, Any]) -> Scores:
    """Bring the seeds of all tasks together.

    Args:
        encoder: its name.
        cells: what `fine_tune` wrote for each task and seed.
        sizes: by name of the task, its numbers of examples (`train`, and `dev` by split), and by split and metric the
            `majority` baseline.
    """
    rows: list[dict[str, Any]] = []
    for cell in cells:
        task, size = TASKS[cell["task"]], sizes[cell["task"]]
        shared = {"task": task.name, "seed": cell["seed"], "train": size["train"], "seconds": cell["seconds"]}
        shared["setting"] = str(Setting(**cell["setting"]))
        for split, metrics in cell["metrics"].items():
            for name, value in metrics.items():
                row = {"metric": metric_name(name, split), "value": value, "dev": size["dev"][split]}
                rows.append({**shared, **row, "majority": size["majority"][split][name]})
        row = {"metric": SCORE, "value": cell["score"], "dev": sum(size["dev"].values())}
        rows.append({**shared, **row, "majority": headline(task, size["majority"])})
    return Scores(encoder, _frame(rows))


def metric_name(metric: str, split: str) -> str:
    """`accuracy`, or with the split where a task has several: `accuracy (matched)`."""
    _, several, kind = split.partition("_")
    return f"{metric} ({kind})" if several else metric


def write_scores(scores: Scores, out: Path) -> list[Path]:
    """Write scores.json, scores.csv, scores.md, scores.png and scores.svg; returns their paths."""
    from .runs import write_json

    content = {"encoder": scores.encoder, "average": scores.average, "missing": scores.missing}
    write_json(out / SCORES, {**content, "values": scores.values.to_dict("records")})
    table = scores.summary().drop(SCORE, level="metric").reset_index()
    return [out / SCORES, *write_all(out / "scores", table, markdown(scores), bars([scores], [scores.encoder]))]


def write_all(path: Path, table: pd.DataFrame, page: str, figure: "Figure") -> list[Path]:
    """Write a table as CSV with six decimals, a page as Markdown, and a figure; `path` has no suffix."""
    from bamboo.analysis.plots import save_figure

    csv = write_text(path.with_suffix(".csv"), table.to_csv(index=False, float_format="%.6f"))
    return [csv, write_text(path.with_suffix(".md"), f"{page}\n"), *save_figure(figure, path)]


def markdown(scores: Scores) -> str:
    """The table, and the average or what is missing for it."""
    lines = [("task", "metric", "median", "min to max", "majority", "seeds", "train", "dev", "time per seed")]
    before = None
    for (name, metric), row in scores.summary().drop(SCORE, level="metric").iterrows():
        title, time = (TASKS[name].title, duration(row["seconds"])) if name != before else ("", "")
        extent = f"{percent(row['low'])} to {percent(row['high'])}"
        counts = (f"{row[column]:,}" for column in ("seeds", "train", "dev"))
        lines.append((title, metric, percent(row["median"]), extent, percent(row["majority"]), *counts, time))
        before = name
    end = (
        f"Average over the eight tasks: {percent(scores.average)}, the mean of their medians; a task with several "
        "numbers counts as their mean."
    )
    if scores.missing:
        end = f"No average over the eight tasks: {', '.join(TASKS[name].title for name in scores.missing)} missing."
    return f"{scores.encoder}, in percent\n\n{markdown_table(lines)}\n\n{end}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first line its header; columns but the first two are numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "|".join(f"{'-' * (width + 1)}{'-' if i < 2 else ':'}" for i, width in enumerate(widths))
    header, *rows = (
        " | ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in lines)
    )
    return "\n".join([f"| {header} |", f"|{rule}|", *(f"| {row} |" for row in rows)])


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

    names = [name for name in TASKS if any(name in set(run.values["task"]) for run in runs)]
    width = 0.7 / len(runs)
    with style():
        figure = Figure(figsize=(1.6 + 0.75 * len(names) + 0.25 * len(runs), 3.2), layout="constrained")
        axis = figure.subplots()
        for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
            rows = run.summary().xs(SCORE, level="metric")
            place = rows.index.map(names.index) + (number - (len(runs) - 1) / 2) * width
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
