"""What a checkpoint, and the folder of its run if there is one, say of how a model was trained and how well it did."""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bamboo.recipes import scaled_lr

SPEEDS = ("val/samples", "val/images_per_s")
"""Logged in validation, and no measure of a model."""
LIMITS = ("task", "name", "fraction", "shots", "samples", "validate_on_train")
"""Arguments of data that say which they are, or that they are less than the whole."""


class Data(NamedTuple):
    """Data as a card names them: for people, and on Hugging Face's hub if they came from there."""

    name: str
    hub: str | None = None


class Number(NamedTuple):
    """A measured value; `of_these_weights` says whether it was measured of just the weights in the checkpoint."""

    name: str
    value: float
    of_these_weights: bool = True


@dataclass(frozen=True)
class History:
    """What is known of a training.

    Args:
        arguments: the hyperparameters of the checkpoint; empty where the file is none of this project.
        recipe: what a run was, as text by name.
        data: what it was trained on, where that is known.
        start: the weights that it started from, where it says so.
        numbers: what was measured.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)
    data: Data | None = None
    start: Data | None = None
    numbers: tuple[Number, ...] = ()


def read_history(content: Mapping[str, Any], path: Path | None) -> History:
    """The history of a checkpoint: of what the file holds, and of RUN where it lies in RUN/checkpoints.

    Nothing of it is a path: of a folder or file of the person who trained, its own name alone is kept.
    """
    arguments = content.get("hyper_parameters")
    if "state_dict" not in content or not isinstance(arguments, Mapping):
        return History()
    run = path.resolve().parent.parent if path and path.resolve().parent.name == "checkpoints" else None
    config = _read_config(run / "config.yaml") if run else {}
    options = _options(config.get("model"))
    source = options.get("encoder") or options.get("init_from")
    numbers = (*_of_callbacks(content, config), *(_of_validation(run, content.get("global_step", 0)) if run else ()))
    return History(
        dict(arguments),
        {key: value for key, value in _recipe(content, arguments, config).items() if value},
        _data(content, config),
        without_folders(str(source)) if source else None,
        tuple(number for number in numbers if math.isfinite(number.value)),
    )


def without_folders(source: str) -> Data:
    """What to call a source of weights or data: a name on a hub as it is, of a path its last part alone."""
    place = re.split(r",(?=[a-z_]+=)", source)[0]
    scheme, colon, rest = place.partition(":")
    if colon and scheme == "hf" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest) and not Path(rest).exists():
        return Data(rest, rest)
    if colon and scheme == "timm":
        name, at, file = rest.partition("@")
        return Data(f"timm:{name}{at}{Path(file).name}")
    return Data(Path(rest if scheme == "hf" and rest else place).expanduser().resolve().name)


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run; a folder without one, or with another file of that name, says nothing."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _options(section: Any) -> dict[str, Any]:
    options = section.get("init_args") if isinstance(section, Mapping) else None
    return options if isinstance(options, dict) else {}


def _data(content: Mapping[str, Any], config: Mapping[str, Any]) -> Data | None:
    """The data by their class, which a checkpoint knows too, and their name."""
    states = [key for key, state in content.items() if isinstance(state, Mapping) and {*state} == {"epoch", "batches"}]
    options, section = _options(config.get("data")), config.get("data")
    kind = str(section.get("class_path", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""
    if not kind and not states:
        return None
    place = next((without_folders(str(options[key])) for key in ("root", "train") if options.get(key)), None)
    limits = {key: options[key] for key in LIMITS if options.get(key) not in (None, 1.0, 0.0)}
    words = [place.name if place else "", *(f"{key} {value}" for key, value in limits.items())]
    details = ", ".join(word for word in words if word)
    return Data(f"{kind or states[0]}{f' ({details})' if details else ''}", place.hub if place else None)


def _recipe(content: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    recipe, batch, trainer = (
        part or {} for part in (arguments.get("recipe"), content.get("batch"), config.get("trainer"))
    )
    effective, steps, base = batch.get("effective_batch"), content.get("global_step"), recipe.get("base_lr")
    peak = f", {scaled_lr(base, effective):.3g} at this batch" if base and effective else ""
    share, epochs = recipe.get("warmup_share"), recipe.get("warmup_epochs")
    warmup = f"{share:.1%} of the run" if share is not None else f"{epochs:g} epochs" if epochs is not None else ""
    parts = "{batch_size} x {processes} processes x {accumulate_grad_batches} accumulated"
    return {
        "optimizer": recipe.get("optimizer", ""),
        "learning rate": f"{base:.3g} per 256 samples{peak}" if base else "",
        "schedule": f"{recipe['schedule']}, down to {recipe.get('min_lr', 0):g}" if "schedule" in recipe else "",
        "warm-up": warmup,
        "weight decay": f"{recipe['weight_decay']:g}" if "weight_decay" in recipe else "",
        "betas": ", ".join(map(str, recipe.get("betas", ()))),
        "batch": f"{effective} samples a step ({parts.format_map(batch)})" if effective else "",
        "steps": str(steps or ""),
        "epochs completed": _epochs(content, trainer.get("max_epochs")),
        "samples seen": f"{steps * effective:,}" if steps and effective else "",
        "precision": str(trainer.get("precision") or ""),
        "gradients clipped at": str(trainer.get("gradient_clip_val") or ""),
        "seed": str(arguments.get("seed", "")),
    }


def _epochs(content: Mapping[str, Any], planned: int | None) -> str:
    """How many passes through the data have ended; an interrupted one does not count."""
    completed = _completed(content)
    return f"{completed:g}{f' of {planned}' if (planned or -1) > 0 else ''}" if math.isfinite(completed) else ""


def _completed(content: Mapping[str, Any]) -> float:
    try:
        loop = content["loops"]["fit_loop"]
        begun, ended = loop["epoch_progress"]["current"]["ready"], loop["epoch_loop.batch_progress"]["is_last_batch"]
    except (KeyError, TypeError):
        return math.nan
    return float(begun if ended else begun - 1)


def _of_callbacks(content: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Number]:
    """Nearest neighbours of `NeighbourProbe`, and the best value that `Checkpoints` saw."""
    # The probe measures every few epochs, and always at the end: of an earlier checkpoint its value may be older.
    ended = _completed(content) == (config.get("trainer") or {}).get("max_epochs")
    for name, state in (content.get("callbacks") or {}).items():
        if name.startswith("NeighbourProbe"):
            for what, value in state["accuracy"].items():
                trained = what == "trained encoder"
                note = " when last measured" if trained and not ended else ""
                yield Number(f"nearest neighbours, {what}{note}", value, trained and ended)
        if name.startswith("Checkpoints") and isinstance(state.get("best"), float):
            metric = (config.get("checkpoint") or {}).get("monitor")
            yield Number(f"best {metric or 'value of the monitored metric'} of the run", state["best"], False)


def _of_validation(run: Path, steps: int) -> Iterator[Number]:
    """The last values of validation that a run logged up to this checkpoint, from metrics.csv or from TensorBoard."""
    for tag, points in sorted((_curves_of_table(run) or _curves_of_events(run)).items()):
        before = [point for point in points if point[0] < steps]  # validation after step n is logged at n - 1
        if before:
            step, value = max(before, key=lambda point: point[0])
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
