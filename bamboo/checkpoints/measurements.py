"""What was measured of a model in its training: by the checkpoint, and by the logs of its run."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SPEEDS = ("val/samples", "val/images_per_s")
"""Logged in validation, and no measure of a model."""
NEIGHBOURS = "accuracy of 20 nearest neighbours"
"""What `NeighbourProbe` measures of frozen features."""


class Number(NamedTuple):
    """A measured value; `of_these_weights` says whether it was measured of just the weights in the checkpoint."""

    name: str
    value: float
    of_these_weights: bool = True


def read_numbers(content: Mapping[str, Any], run: Path | None, config: Mapping[str, Any]) -> tuple[Number, ...]:
    """All finite numbers of a checkpoint and, where there is one, of the folder of its run with its configuration."""
    validation = _of_validation(run, content.get("global_step", 0)) if run else ()
    return tuple(n for n in (*_of_callbacks(content, config), *validation) if math.isfinite(n.value))


def completed_epochs(content: Mapping[str, Any]) -> float:
    """How many passes through the data have ended; an interrupted one does not count. NaN if that is not said."""
    try:
        loop = content["loops"]["fit_loop"]
        begun, ended = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]["is_last_batch"]
    except (KeyError, TypeError):
        return math.nan
    return float(begun if ended else begun - 1)


def _of_callbacks(content: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Number]:
    """Nearest neighbours of `NeighbourProbe`, and the best value that `Checkpoints` saw."""
    # The probe measures every few epochs, and always at the end: of an earlier checkpoint its value may be older.
    ended = completed_epochs(content) == (config.get("trainer") or {}).get("max_epochs")
    for name, state in (content.get("callbacks") or {}).items():
        if name.startswith("NeighbourProbe"):
            for what, value in state.get("accuracy", {}).items():
                trained = what == "trained encoder"
                note = ", when last measured" if trained and not ended else ""
                yield Number(f"{NEIGHBOURS}, {what}{note}", value, trained and ended)
        if name.startswith("Checkpoints") and isinstance(state.get("best"), float):
            metric = (config.get("checkpoint") or {}).get("monitor")
            yield Number(f"best {metric or 'value of the monitored metric'} so far", state["best"], False)


def _of_validation(run: Path, steps: int) -> Iterator[Number]:
    """The last values of validation that a run logged up to this checkpoint, from metrics.csv or from TensorBoard."""
    for tag, points in sorted((_curves_of_table(run) or _curves_of_events(run)).items()):
        before = [point for point in points if point[0] < steps]  # validation after step n is logged at n - 1
        if before:
            step, value = sorted(before, key=lambda point: point[0])[-1]  # of a resumed run what it logged last
            here = step + 1 == steps
            yield Number(tag if here else f"{tag} after step {step + 1}", value, here)


def _curves_of_table(run: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for tag in filter(_is_measure, row):
                    if row[tag] and row.get("step"):
                        curves.setdefault(tag, []).append((int(row["step"]), float(row[tag])))
    except (OSError, ValueError, TypeError):  # absent, or another table of that name
        return {}
    return curves


def _curves_of_events(run: Path) -> dict[str, list[tuple[int, float]]]:
    if not any(run.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if _is_measure(tag)
    }


def _is_measure(tag: str | None) -> bool:
    return bool(tag) and str(tag).startswith("val/") and tag not in SPEEDS
