"""What became of the cells of a study, read from their folders: numbers by objective, shape and seed, and tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bamboo.analysis.profiles import Comparison, Profile
from bamboo.errors import InputError
from bamboo.files import read_json, write_text

from .changes import united
from .courses import SIMILARITIES, Course, read_course
from .folders import FAILED, LAYERS, LENGTHS, RESULT, cell_folder, cell_state, load_stored
from .spec import Cell, Study, check

NUMBERS = {
    "similarity": "similarity",
    "similarity_untrained": "untrained",
    "excess": "excess similarity",
    "excess_untrained": "untrained excess similarity",
    "excess_moved": "excess moved in the last third",
    "excess_before_last": "excess before the last block",
    "excess_normed": "excess after the final norm",
    "excess_visible": "excess of the visible share",
    "excess_visible_untrained": "untrained excess of the visible share",
    "excess_finetuned": "excess after fine-tuning",
    "effective_rank": "effective rank",
    "effective_rank_untrained": "untrained effective rank",
    "loss": "loss without labels",
    "perplexity": "perplexity",
    "masked_accuracy": "hidden tokens guessed right",
    "next_accuracy": "next tokens guessed right",
    "loss_longest": "loss at the greatest length",
    "loss_beyond": "rise of loss to the greatest length",
    "most_frequent_token": "by the most frequent token",
    "accuracy": "accuracy",
    "nearest_neighbours": "nearest neighbours",
    "nearest_neighbours_projected": "nearest neighbours at equal width",
    "linear_probe": "linear probe",
    "linear_probe_projected": "linear probe at equal width",
    "linear_probe_layer": "its layer",
    "linear_probe_last": "linear probe, last layer",
    "projected_width": "equal width",
    "parameters": "parameters",
    "encoder_parameters": "encoder parameters",
    "activation_bytes": "bytes kept for the backward pass",
}
"""Names of numbers in a result, in the order of the tables, and what people call them."""

SHARES = (
    *("accuracy", "masked_accuracy", "next_accuracy", "most_frequent_token"),
    *("nearest_neighbours", "nearest_neighbours_projected"),
    *("linear_probe", "linear_probe_projected", "linear_probe_last"),
)
"""Numbers that are shown in percent."""

# Labels of profiles.
UNTRAINED = "untrained, held-out, whole"
WHOLE = "trained, held-out, whole"
TRAIN = "trained, train, whole"
VISIBLE = "trained, held-out, visible"
VISIBLE_UNTRAINED = "untrained, held-out, visible"
FINETUNED = "fine-tuned, held-out, whole"

STATES = ("waiting", "begun", "failed", "done")
COURSE = ("step", "flops", "loss", "layer", *SIMILARITIES)
LAYER = ("layer", "position", "measure", "mean", "low", "high", "n")


class Series(NamedTuple):
    """An objective at a setting of its axes: what has one colour in all figures."""

    objective: str
    kind: str
    axes: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """Its name, with the values of its axes."""
        return ", ".join([self.objective, *(f"{name.split('.')[-1]} {value}" for name, value in self.axes)])


@dataclass(frozen=True)
class Outcome:
    """A cell and what became of it: one of `STATES`; where it failed the reason, and whether training diverged.

    `numbers` were measured, by the names of `NUMBERS`, and are the same however often the study is run; `cost` is not.
    """

    cell: Cell
    folder: Path
    state: str
    numbers: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    device: str = ""
    diverged: bool = False

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        """The profiles of a finished cell, by their labels, such as `trained, held-out, whole`."""
        return {profile.label: profile for profile in Comparison.load(self.folder / "profile").profiles}

    @cached_property
    def course(self) -> Course:
        """Similarity, loss and FLOPs along the training of a finished cell."""
        return read_course(self.folder / "training.json")

    @cached_property
    def probes(self) -> dict[str, list[float]]:
        """Accuracy of the linear probe of each layer, by the name of its number; of texts there are none."""
        path = self.folder / LAYERS
        return read_json(path) if path.is_file() else {}

    @cached_property
    def lengths(self) -> dict[int, float]:
        """Loss by the length of windows of held-out text, of a causal model that was evaluated so."""
        path = self.folder / LENGTHS
        return {int(length): loss for length, loss in read_json(path).items()} if path.is_file() else {}

    def curve(self, measure: str, label: str) -> NDArray[np.float64] | None:
        """A measure, or probe of the trained encoder, by layer (layers,); None where the cell has none."""
        if measure in self.probes and label == WHOLE:
            return np.asarray(self.probes[measure])
        profile = self.profiles.get(label)
        return profile.curve(measure).mean if profile and profile.has(measure) else None

    @property
    def seconds(self) -> float:
        """Time of its training and evaluation together."""
        return sum(value for name, value in self.cost.items() if name.startswith("seconds_"))


@dataclass(frozen=True)
class Results:
    """A study and the outcomes of its cells, in the order of the grid."""

    study: Study
    outcomes: tuple[Outcome, ...]

    @property
    def done(self) -> list[Outcome]:
        """The finished cells."""
        return [outcome for outcome in self.outcomes if outcome.state == "done"]

    @property
    def series(self) -> list[Series]:
        """Objectives and settings, in the order of the grid."""
        cells = (outcome.cell for outcome in self.outcomes)
        kinds = {name: objective.kind for name, objective in self.study.objectives.items()}
        return list(dict.fromkeys(Series(cell.objective, kinds[cell.objective], cell.axes) for cell in cells))

    def of(self, series: Series, label: str | None = None) -> list[Outcome]:
        """The finished cells of a series, of one shape or of all."""
        return [outcome for outcome in self._at(series, label) if outcome.state == "done"]

    def diverged(self, series: Series, label: str) -> list[Outcome]:
        """The cells of a series and shape whose training diverged."""
        return [outcome for outcome in self._at(series, label) if outcome.diverged]

    def _at(self, series: Series, label: str | None) -> list[Outcome]:
        return [
            outcome
            for outcome in self.outcomes
            if (outcome.cell.objective, outcome.cell.axes) == (series.objective, series.axes)
            and label in (None, outcome.cell.label)
        ]

    def values(self, series: Series, label: str, name: str) -> dict[int, float]:
        """A number or cost of a series and shape by seed, of the finished cells that have it."""
        numbers = {outcome.cell.seed: outcome.cost | outcome.numbers for outcome in self.of(series, label)}
        return {seed: found[name] for seed, found in numbers.items() if name in found}

    def has(self, name: str) -> bool:
        """Whether any cell has a number."""
        return any(name in outcome.numbers for outcome in self.done)


def read_results(study: Study, out: Path) -> Results:
    """The outcomes of a study in a folder."""
    return Results(study, tuple(_outcome(cell, cell_folder(out, cell)) for cell in study.cells()))


def _outcome(cell: Cell, folder: Path) -> Outcome:
    state = cell_state(folder)
    if state == "done":
        result = read_json(folder / RESULT)
        return Outcome(cell, folder, state, result["numbers"], result["cost"], device=result["device"])
    failure = read_json(folder / FAILED) if state == "failed" else {}
    reason, diverged = (
        failure.get("reason", ""),
        failure.get("diverged", False),
    )  # of which earlier versions say nothing
    return Outcome(cell, folder, state, reason=reason, diverged=diverged)


def merge_results(folders: Sequence[Path]) -> Results:
    """The outcomes of several folders as one study; what the grids of the studies hold is put together.

    Raises:
        InputError: where the studies are measured otherwise, an objective or shape of one name differs, or a cell
            ended, or its rate was chosen, differently in two folders.
    """
    studies = {folder: load_stored(folder) for folder in folders}
    tuned: dict[str, Any] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("tuning/*.json"))):
        if (values := read_json(path)["chosen"]) != tuned.setdefault(path.stem, values):
            raise InputError(f"{path} chose {values}, and {tuned[path.stem]} was chosen elsewhere: tune once, for all")
    (first, merged), *others = studies.items()
    for folder, other in others:
        merged = united(merged, other, f"{folder} holds another study than {first}")
    by_name: dict[str, Outcome] = {}
    for folder, study in studies.items():
        for outcome in read_results(study, folder).outcomes:
            by_name[outcome.cell.name] = _better(by_name.get(outcome.cell.name, outcome), outcome)
    outcomes = ((cell, by_name.get(cell.name)) for cell in check(merged).cells())
    return Results(
        merged, tuple(replace(o, cell=cell) if o else Outcome(cell, Path(), "waiting") for cell, o in outcomes)
    )


def _better(known: Outcome, other: Outcome) -> Outcome:
    """Which of two outcomes of a cell got further; if both are done they must agree."""
    if known.state == other.state == "done" and known.numbers != other.numbers:
        name = next(
            name for name in {**known.numbers, **other.numbers} if known.numbers.get(name) != other.numbers.get(name)
        )
        values = f"{known.numbers.get(name)} in {known.folder} and {other.numbers.get(name)} in {other.folder}"
        raise InputError(f"cell {known.cell.name} ended differently: {name} is {values}; remove one of them")
    return max(known, other, key=lambda outcome: STATES.index(outcome.state))


def write_tables(results: Results, out: Path) -> list[Path]:
    """Write cells.csv, layers.csv and training.csv, the same for every run of a study, and costs.csv, which is not."""
    numbers = [name for name in NUMBERS if results.has(name)]
    cells = ["cell", "objective", "shape", "depth", "width", "heads", "block_parameters"]
    cells += [*results.study.axes, "seed", "state", "reason"]
    costs = [{"cell": done.cell.name, "device": done.device, **done.cost} for done in results.done]
    tables = {
        "cells": pd.DataFrame(map(_row, results.outcomes), columns=[*cells, *numbers, "file"], dtype=object),
        "layers": pd.DataFrame(_layers(results), columns=["cell", "model", "samples", "length", *LAYER, "file"]),
        "training": pd.DataFrame(_courses(results), columns=["cell", *COURSE, "file"]),
        "costs": pd.DataFrame(costs),
    }
    if lengths := [[o.cell.name, length, loss] for o in results.done for length, loss in o.lengths.items()]:
        tables["lengths"] = pd.DataFrame(lengths, columns=["cell", "length", "loss"])
    return [
        write_text(out / f"{name}.csv", table.to_csv(index=False, na_rep="nan" if name == "layers" else ""))
        for name, table in tables.items()
    ]


def _row(outcome: Outcome) -> dict[str, Any]:
    cell, shape = outcome.cell, outcome.cell.shape
    return {
        "cell": cell.name,
        "objective": cell.objective,
        "shape": cell.label,
        "depth": shape.depth,
        "width": shape.width,
        "heads": shape.heads,
        "block_parameters": shape.parameters,
        **dict(cell.axes),
        "seed": cell.seed,
        "state": outcome.state,
        "reason": outcome.reason,
        **outcome.numbers,
        "file": f"cells/{cell.name}/{RESULT}" if outcome.state == "done" else "",
    }


def _layers(results: Results) -> Iterator[list[Any]]:
    for done in results.done:
        for label, *row in Comparison.load(done.folder / "profile").to_pandas().itertuples(index=False):
            yield [done.cell.name, *label.split(", "), *row, f"cells/{done.cell.name}/profile/profile.csv"]
        for measure, accuracies in done.probes.items():
            for layer, accuracy in enumerate(accuracies):
                row = [layer, "stream", measure, accuracy]
                yield [done.cell.name, *WHOLE.split(", "), *row, "", "", "", f"cells/{done.cell.name}/{LAYERS}"]


def _courses(results: Results) -> Iterator[list[Any]]:
    for done in results.done:
        steps, losses, flops, similarity = done.course
        for time, step in enumerate(steps):
            for layer, values in enumerate(zip(*(curves[time] for curves in similarity.values()), strict=True)):
                row = [step, flops[time], losses[time], layer, *values]
                yield [done.cell.name, *row, f"cells/{done.cell.name}/training.json"]
