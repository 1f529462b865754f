"""Two sweeps side by side."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bamboo.errors import InputError
from bamboo.files import atomic_write

from .scores import EIGHT, Scores, Spread, bars, between, percent, table
from .tasks import TASKS

RULE = "A difference exceeds the spread where the ranges (smallest to largest over seeds) do not overlap."


@dataclass(frozen=True)
class Difference:
    """What two runs scored on a task.

    Args:
        task: its name.
        first: summary of the first run over its seeds.
        second: of the second one.
        seeds: number of seeds of each.
    """

    task: str
    first: Spread
    second: Spread
    seeds: tuple[int, int]

    @property
    def value(self) -> float:
        """Median of the second run less that of the first."""
        return self.second.median - self.first.median

    @property
    def exceeds(self) -> bool | None:
        """Whether the ranges over seeds do not overlap; None with a single seed, or where a score is not defined."""
        ends = (self.first.low, self.first.high, self.second.low, self.second.high)
        if min(self.seeds) < 2 or any(map(math.isnan, ends)):
            return None
        return self.second.low > self.first.high or self.first.low > self.second.high


def differences(first: Scores, second: Scores) -> list[Difference]:
    """The tasks that both runs have, in the order of the benchmark.

    Raises:
        InputError: where they have none in common, or not on the same examples.
    """
    runs = [{task.name: task for task in run.tasks} for run in (first, second)]
    names = [name for name in TASKS if all(name in run for run in runs)]
    if not names:
        raise InputError(f"{first.encoder} and {second.encoder} have no task in common")
    found = []
    for name in names:
        one, two = (run[name] for run in runs)
        if (one.train, one.dev) != (two.train, two.dev):
            raise InputError(
                f"{name}: {one.train} training and {sum(one.dev.values())} dev examples in one run, {two.train} and "
                f"{sum(two.dev.values())} in the other: only scores on the same examples can be compared"
            )
        found.append(Difference(name, one.score, two.score, (len(one.seeds), len(two.seeds))))
    return found


def comparison_table(found: Sequence[Difference], labels: Sequence[str]) -> str:
    """The table, the average, and the rule, in Markdown."""
    header = ("task", "beyond the spread", labels[0], "min to max", labels[1], "min to max", "difference")
    words = {True: "yes", False: "no", None: "unknown"}
    rows = [
        (
            TASKS[one.task].title,
            words[one.exceeds],
            *(text for spread in (one.first, one.second) for text in (percent(spread.median), between(spread))),
            f"{100 * one.value:+.1f}",
        )
        for one in found
    ]
    counted = [one for one in found if one.task in EIGHT]
    means = [sum(spread) / len(counted) for spread in _medians(counted)] if counted else [math.nan, math.nan]
    name = "average" if len(counted) == len(EIGHT) else f"mean of {len(counted)}"
    row = (name, "", percent(means[0]), "", percent(means[1]), "", f"{100 * (means[1] - means[0]):+.1f}")
    lines = [table([header, *rows, row]), "", RULE]
    if any(min(one.seeds) < 2 for one in found):
        lines.append("One seed has no spread: run `bamboo glue` with more.")
    if len(counted) < len(EIGHT):
        titles = ", ".join(TASKS[name].title for name in EIGHT if name not in {one.task for one in counted})
        lines.append(f"No average over the eight tasks: {titles} missing in one of the two.")
    return "\n".join(lines)


def _medians(found: Sequence[Difference]) -> tuple[list[float], list[float]]:
    return [one.first.median for one in found], [one.second.median for one in found]


def write_comparison(runs: Sequence[Scores], labels: Sequence[str], out: Path) -> list[Path]:
    """Write comparison.csv, comparison.md, comparison.png and comparison.svg; returns their paths."""
    from bamboo.analysis.plots import save_figure

    found = differences(runs[0], runs[1])
    numbers, page = out / "comparison.csv", out / "comparison.md"
    with atomic_write(numbers) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        sides = [f"{label} {what}" for label in labels for what in ("median", "low", "high")]
        writer.writerow(("task", *sides, "difference", "exceeds the spread"))
        for one in found:
            ends = [end for spread in (one.first, one.second) for end in (spread.median, spread.low, spread.high)]
            writer.writerow((one.task, *(f"{end:.6f}" for end in ends), f"{one.value:.6f}", one.exceeds))
    with atomic_write(page) as temporary:
        temporary.write_text(f"{comparison_table(found, labels)}\n", encoding="utf-8")
    return [numbers, page, *save_figure(bars(runs, labels), out / "comparison")]
