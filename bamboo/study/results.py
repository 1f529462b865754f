"""What the cells of a study found, read from their folders into tables."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bamboo.analysis.profiles import Comparison, Profile
from bamboo.errors import InputError
from bamboo.files import atomic_write

from .cells import FAILED, RESULT, cell_folder, cell_state, read_result
from .runner import load_stored
from .spec import Cell, Study, check

NUMBERS = {
    "similarity": "similarity",
    "similarity_untrained": "untrained",
    "similarity_train": "on training samples",
    "similarity_masked": "at masked length",
    "similarity_untrained_masked": "untrained, at masked length",
    "effective_rank": "effective rank",
    "effective_rank_untrained": "untrained effective rank",
    "loss": "masked loss",
    "masked_accuracy": "hidden tokens guessed right",
    "most_frequent_token": "by the most frequent token",
    "accuracy": "accuracy",
    "nearest_neighbours": "nearest neighbours",
    "linear_probe": "linear probe",
    "linear_probe_layer": "its layer",
    "linear_probe_last": "linear probe, last layer",
    "encoder_parameters": "encoder parameters",
    "activation_bytes": "bytes kept for the backward pass",
}
"""Names of numbers in a result, in the order of the tables, and what people call them."""

SHARES = (
    "accuracy",
    "masked_accuracy",
    "most_frequent_token",
    "nearest_neighbours",
    "linear_probe",
    "linear_probe_last",
)


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
    """A cell and what became of it.

    Args:
        cell: the cell.
        folder: where its files lie.
        state: `done`, `failed`, `begun` or `waiting`.
        numbers: what was measured, by the names of `NUMBERS`; the same however often the study is run.
        cost: seconds, which are not.
        reason: why it failed.
        device: what it ran on.
    """

    cell: Cell
    folder: Path
    state: str
    numbers: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    device: str = ""

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        """The profiles of a finished cell, by their labels, such as `trained, held-out, whole`."""
        return {profile.label: profile for profile in Comparison.load(self.folder / "profile").profiles}

    @cached_property
    def course(self) -> tuple[list[int], NDArray[np.float64]]:
        """Steps (times,) and similarity (times, layers) along the training of a finished cell."""
        told = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))["similarity"]
        return [int(step) for step in told], np.asarray(list(told.values()))


@dataclass(frozen=True)
class Results:
    """A study and the outcomes of its cells, in the order of the grid."""

    study: Study
    outcomes: tuple[Outcome, ...]

    @property
    def done(self) -> list[Outcome]:
        """The finished cells."""
        return [one for one in self.outcomes if one.state == "done"]

    @property
    def series(self) -> list[Series]:
        """Objectives and settings, in the order of the grid."""
        found = (
            Series(one.cell.objective, self.study.objectives[one.cell.objective].kind, one.cell.axes)
            for one in self.outcomes
        )
        return list(dict.fromkeys(found))

    def of(self, series: Series, label: str | None = None) -> list[Outcome]:
        """The finished cells of a series, of one shape or of all."""
        return [
            one
            for one in self.done
            if (one.cell.objective, one.cell.axes) == (series.objective, series.axes)
            and label in (None, one.cell.label)
        ]

    def values(self, series: Series, label: str, name: str) -> dict[int, float]:
        """A number of a series and shape by seed, of the finished cells that have it."""
        return {one.cell.seed: one.numbers[name] for one in self.of(series, label) if name in one.numbers}

    def has(self, name: str) -> bool:
        """Whether any cell has a number."""
        return any(name in one.numbers for one in self.done)


def read_results(study: Study, out: Path) -> Results:
    """The outcomes of a study in a folder."""
    return Results(study, tuple(_outcome(cell, cell_folder(out, cell)) for cell in study.cells()))


def _outcome(cell: Cell, folder: Path) -> Outcome:
    state = cell_state(folder)
    if state == "done":
        told = read_result(folder)
        return Outcome(cell, folder, state, told["numbers"], told["cost"], device=told["device"])
    if state == "failed":
        reason = json.loads((folder / FAILED).read_text(encoding="utf-8"))["reason"]
        return Outcome(cell, folder, state, reason=reason)
    return Outcome(cell, folder, state)


def merge_results(folders: Sequence[Path]) -> Results:
    """The outcomes of several folders as one study; what the grids of the studies hold is put together.

    Raises:
        InputError: where the studies are measured otherwise, an objective or shape of one name differs, or a cell
            ended differently in two folders.
    """
    studies = {folder: load_stored(folder) for folder in folders}
    (first, study), *others = studies.items()
    for folder, other in others:
        study = _united(study, other, first, folder)
    found: dict[str, Outcome] = {}
    for folder, one in studies.items():
        for outcome in read_results(one, folder).outcomes:
            found[outcome.cell.name] = _better(found.get(outcome.cell.name), outcome)
    cells = check(study).cells()
    nowhere = ((cell, found.get(cell.name)) for cell in cells)
    return Results(study, tuple(replace(o, cell=c) if o else Outcome(c, Path(), "waiting") for c, o in nowhere))


def _united(one: Study, two: Study, first: Path, folder: Path) -> Study:
    ours, theirs = one.identity(), two.identity()
    for key in ours:
        if ours[key] != theirs[key]:
            raise InputError(f"{folder} holds another study than {first}: {key} is {theirs[key]}, not {ours[key]}")
    for what in ("shapes", "objectives"):
        mine, other = getattr(one, what), getattr(two, what)
        clash = next((name for name in mine if name in other and mine[name] != other[name]), None)
        if clash:
            raise InputError(f"{folder} holds another study than {first}: {what[:-1]} {clash} differs")
    if one.axes.keys() != two.axes.keys():
        raise InputError(f"{folder} has other axes than {first}: {[*two.axes]}, not {[*one.axes]}")
    axes = {name: tuple(dict.fromkeys([*values, *two.axes[name]])) for name, values in one.axes.items()}
    shapes, objectives = one.shapes | two.shapes, one.objectives | two.objectives
    shapes = dict(sorted(shapes.items(), key=lambda item: item[1].depth))
    seeds = tuple(sorted({*one.seeds, *two.seeds}))
    unequal = one.allow_unequal or two.allow_unequal
    return replace(one, shapes=shapes, objectives=objectives, axes=axes, seeds=seeds, allow_unequal=unequal)


ORDER = ("waiting", "begun", "failed", "done")


def _better(one: Outcome | None, two: Outcome) -> Outcome:
    if one is None:
        return two
    if one.state == two.state == "done" and one.numbers != two.numbers:
        name = next(name for name in {**one.numbers, **two.numbers} if one.numbers.get(name) != two.numbers.get(name))
        values = f"{one.numbers.get(name)} in {one.folder} and {two.numbers.get(name)} in {two.folder}"
        raise InputError(f"cell {one.cell.name} ended differently: {name} is {values}; remove one of them")
    return max(one, two, key=lambda outcome: ORDER.index(outcome.state))


def write_tables(results: Results, out: Path) -> list[Path]:
    """Write cells.csv, layers.csv and training.csv, the same for every run of a study, and costs.csv, which is not."""
    axes = list(results.study.axes)
    numbers = [name for name in NUMBERS if results.has(name)]
    costs = list(dict.fromkeys(name for one in results.done for name in one.cost))
    cell_head = ("cell", "objective", "shape", "depth", "width", "heads", *axes, "seed", "state", "reason")
    tables = {
        "cells": ((*cell_head, *numbers, "file"), (_row(one, axes, numbers) for one in results.outcomes)),
        "layers": (("cell", "model", "samples", "length", *LAYER, "file"), _layers(results)),
        "training": (("cell", "step", "layer", "token_similarity", "file"), _courses(results)),
        "costs": (
            ("cell", "device", *costs),
            ([one.cell.name, one.device, *(one.cost.get(name, "") for name in costs)] for one in results.done),
        ),
    }
    return [_write(out / f"{name}.csv", head, rows) for name, (head, rows) in tables.items()]


LAYER = ("layer", "position", "measure", "mean", "low", "high", "n")


def _row(one: Outcome, axes: Sequence[str], numbers: Sequence[str]) -> list[Any]:
    cell, own = one.cell, dict(one.cell.axes)
    sizes = (cell.shape.depth, cell.shape.width, cell.shape.heads)
    values = (one.numbers.get(name, "") for name in numbers)
    told = [cell.name, cell.objective, cell.label, *sizes, *(own.get(name, "") for name in axes), cell.seed]
    return [*told, one.state, one.reason, *values, f"cells/{cell.name}/{RESULT}" if one.state == "done" else ""]


def _layers(results: Results) -> Iterator[list[Any]]:
    for one in results.done:
        for row in Comparison(tuple(one.profiles.values())).rows():
            yield [one.cell.name, *row[0].split(", "), *row[1:], f"cells/{one.cell.name}/profile/profile.csv"]


def _courses(results: Results) -> Iterator[list[Any]]:
    for one in results.done:
        steps, table = one.course
        for step, row in zip(steps, table.tolist(), strict=True):
            for layer, value in enumerate(row):
                yield [one.cell.name, step, layer, value, f"cells/{one.cell.name}/training.json"]


def _write(path: Path, head: Iterable[str], rows: Iterable[Sequence[Any]]) -> Path:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path
