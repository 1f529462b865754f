"""The course of a training: similarity, loss and FLOPs at some of its steps, and whether it has settled."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bamboo.files import read_json, write_json

SIMILARITIES = ("token_similarity", "between_similarity", "excess_similarity")
RECENT = 16
"""Training loss is the mean over so many batches, up to that of the step before which similarity was looked at."""


class Course(NamedTuple):
    """What was seen at some steps of a training; NaN where it was not measured.

    Args:
        steps: (times,) optimizer steps before each look.
        loss: (times,) mean training loss of the `RECENT` batches up to the look.
        flops: (times,) FLOPs of training up to the look.
        similarity: (times, layers) of held-out samples, by the names of `SIMILARITIES`.
    """

    steps: list[int]
    loss: NDArray[np.float64]
    flops: NDArray[np.float64]
    similarity: dict[str, NDArray[np.float64]]


def write_course(course: Course, path: Path) -> None:
    """Write a course as JSON, with null for NaN."""
    columns = {"loss": course.loss, "flops": course.flops, **course.similarity}
    write_json(path, {"steps": course.steps, **{name: _plain(values) for name, values in columns.items()}})


def read_course(path: Path) -> Course:
    """What `write_course` wrote. Files of earlier versions hold similarity within samples alone, by step."""
    content = read_json(path)
    if "similarity" in content:
        content = {"steps": [*map(int, content["similarity"])], "token_similarity": [*content["similarity"].values()]}
    return course_of(content["steps"], content.get("loss"), content.get("flops"), content)


def course_of(steps: list[int], loss: Any, flops: Any, similarity: Mapping[str, Any]) -> Course:
    """A course of plain lists, in which None and what is absent was not measured."""
    within = np.asarray(similarity["token_similarity"], dtype=np.float64)
    unknown, nowhere = np.full(len(steps), math.nan), np.full_like(within, math.nan)
    return Course(
        steps,
        loss=unknown if loss is None else np.asarray(loss, dtype=np.float64),
        flops=unknown if flops is None else np.asarray(flops, dtype=np.float64),
        similarity={name: np.asarray(similarity.get(name, nowhere), dtype=np.float64) for name in SIMILARITIES},
    )


def excess_moved(course: Course) -> float:
    """How far excess similarity after the last block moves over the last third of training in log steps.

    The highest less the lowest value from step last^(2/3) on; NaN where fewer than two looks are as late as that, or
    it was not measured.
    """
    last, excess = course.steps[-1], course.similarity["excess_similarity"][:, -1]
    late = excess[[step**3 >= last**2 for step in course.steps]]
    return float(np.ptp(late)) if len(late) > 1 else math.nan


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists of numbers with six decimals, and None for NaN."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
