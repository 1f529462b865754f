"""Two sweeps side by side, and whether their seeds differ by more than chance."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from bamboo.errors import InputError
from bamboo.intervals import LEVEL, holm

from .scores import SCORE, Scores, bars, markdown_table, percent, write_all
from .tasks import EIGHT, TASKS

FEWEST = 3
"""Seeds of each run below which nothing is said: the spread of two says next to nothing about that of all."""

RULE = (
    "Means over seeds. The interval is that of Welch's t-test (95 %, of each task by itself); a task differs where its "
    f"p, corrected by Holm over the tasks, is below {LEVEL:g}."
)


def differences(first: Scores, second: Scores) -> pd.DataFrame:
    """A row for each task that both runs have, in the order of the benchmark.

    Returns:
        By task: `seeds` of the run with fewer, the means `first` and `second` over seeds, their `difference` with its
        95 % interval `low` to `high`, `p` of Welch's t-test (Welch 1947), `p_holm` (Holm 1979), and the `verdict`.

    Raises:
        InputError: where they have no task in common, or not on the same examples.
    """
    runs = [run.values[run.values["metric"] == SCORE] for run in (first, second)]
    names = [name for name in TASKS if all(name in set(run["task"]) for run in runs)]
    if not names:
        raise InputError(f"{first.encoder} and {second.encoder} have no task in common")
    rows = {}
    for name in names:
        pair = [run[run["task"] == name] for run in runs]
        sizes = [tuple(side[["train", "dev"]].iloc[0].astype(int)) for side in pair]
        if sizes[0] != sizes[1]:
            words = " in one run, ".join(f"{train} training and {dev} dev examples" for train, dev in sizes)
            raise InputError(f"{name}: {words} in the other: only scores on the same examples can be compared")
        rows[name] = compare(*(side["value"].to_numpy() for side in pair))
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["p_holm"] = holm(table["p"])
    table["verdict"] = table.apply(_verdict, axis=1)
    return table.rename_axis("task")


def compare(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, float]:
    """Means over seeds, their difference, and Welch's test of it; NaN where there is nothing to test it by."""
    means = {"first": first.mean(), "second": second.mean(), "difference": second.mean() - first.mean()}
    seeds, spread = min(len(first), len(second)), max(np.ptp(first), np.ptp(second))
    row = {"seeds": seeds, **means, "low": math.nan, "high": math.nan, "p": math.nan}
    if seeds < FEWEST or not spread > 0:
        return row
    with warnings.catch_warnings(action="ignore"):  # of scipy, where the seeds of one run are all alike
        test = ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(1 - LEVEL)
    return {**row, "low": low, "high": high, "p": test.pvalue}


def _verdict(row: pd.Series) -> str:
    if math.isnan(row["difference"]):
        return "undefined"
    if row["seeds"] < FEWEST:
        return "too few seeds to say"
    if math.isnan(row["p_holm"]):
        return "no spread to judge by" if row["difference"] else "no difference seen"
    return "differs" if row["p_holm"] < LEVEL else "no difference seen"


def average(first: Scores, second: Scores) -> dict[str, float] | None:
    """`compare` of the average over the eight tasks, seed by seed; None where a task is missing in one of the two."""
    means = []
    for run in (first, second):
        if run.missing:
            return None
        scores = run.values[(run.values["metric"] == SCORE) & run.values["task"].isin(EIGHT)]
        means.append(scores.pivot(index="seed", columns="task", values="value").mean(axis=1, skipna=False))
    return compare(*(mean.to_numpy() for mean in means))


def comparison_table(runs: Sequence[Scores], labels: Sequence[str]) -> str:
    """The table, the average, and the rule, in Markdown."""
    table, whole = differences(*runs), average(*runs)
    rows = [_row(TASKS[str(name)].title, row["verdict"], row) for name, row in table.iterrows()]
    rows += [_row("average", "", whole)] if whole else []
    header = ("task", "verdict", *labels, "difference", "95 % interval", "p (Holm)", "seeds")
    lines = [markdown_table([header, *rows]), "", RULE]
    if (table["seeds"] < FEWEST).any():
        lines.append(f"Fewer than {FEWEST} seeds are too few to say: run `bamboo glue` with more.")
    if whole is None:
        absent = [TASKS[name].title for name in EIGHT if any(name in run.missing for run in runs)]
        lines.append(f"No average over the eight tasks: {', '.join(absent)} missing in one of the two.")
    return "\n".join(lines)


def _row(title: str, verdict: str, row: Mapping[str, float] | pd.Series) -> tuple[str, ...]:
    difference, low, high, p = (row.get(name, math.nan) for name in ("difference", "low", "high", "p_holm"))
    return (
        title,
        verdict,
        percent(row["first"]),
        percent(row["second"]),
        "undefined" if math.isnan(difference) else f"{100 * difference:+.1f}",
        "" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}",
        "" if math.isnan(p) else f"{p:.3f}",
        str(int(row["seeds"])),
    )


def write_comparison(runs: Sequence[Scores], labels: Sequence[str], out: Path) -> list[Path]:
    """Write comparison.csv, comparison.md, comparison.png and comparison.svg; returns their paths."""
    page, figure = comparison_table(runs, labels), bars(runs, labels)
    return write_all(out / "comparison", differences(*runs).reset_index(), page, figure)
