"""What differs between the objectives of a study besides the objective."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bamboo.errors import InputError

from .budget import parse
from .spec import Cell, Study, axis_key
from .stages import run_config

OWN = tuple(
    f"model.init_args.{name}"
    for name in (
        "encoder",
        "num_classes",
        "head_init_std",
        "pool",
        "decoder",
        "mask",
        "predict_ratio",
        "norm_pix",
        "mix_layers",
        "kv_compression",
    )
)
"""Beginnings of keys of heads, decoders, masks and the like: an objective has them or not, and those that do agree."""

FRESH = tuple(f"model.init_args.{name}" for name in ("init", "layer_scale", "attention"))
"""Keys of an encoder that starts from fresh weights; what follows the training of an objective takes its encoder."""

KIND = ("model.class_path", "model.init_args.objective")
RECIPE = "model.init_args.recipe"
LENGTHS = ("max_epochs", "max_steps", "max_time")
SPEED = ("model.init_args.compile", "model.init_args.grad_checkpointing", "data.init_args.num_workers")
WATCHING = (
    "callbacks",
    "logger",
    "plugins",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "fast_dev_run",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
)
"""Keys that change nothing that is trained, as do those of the trainer about validation and progress."""


@dataclass(frozen=True)
class Difference:
    """A key, its value in each stage of each objective, and why it may differ: empty where it may not."""

    key: str
    values: tuple[Any, ...]
    reason: str


def stages(study: Study) -> list[tuple[str, str]]:
    """Objectives and their stages, `train` or `then`, in the order of the columns of a table."""
    return [
        (name, stage) for name, arm in study.objectives.items() for stage in ("train", "then")[: 1 + bool(arm.then)]
    ]


def differences(study: Study) -> list[Difference]:
    """Keys whose values are not the same in all stages of all objectives, at the first or last setting of the axes.

    A stage without a key has its default in the class that has it: no drop path is a drop path of 0. An axis of one
    objective alone, whose key the other leaves at its default, is a difference too.
    """
    if len(study.objectives) < 2:
        return []
    cells = study.cells()
    ends = (reversed(cells), cells) if study.axes else (reversed(cells),)
    found: dict[str, Difference] = {}
    for end in ends:
        for difference in _differences(study, {cell.objective: cell for cell in end}):
            found.setdefault(difference.key, difference)
    return [*found.values()]


def _differences(study: Study, cells: Mapping[str, Cell]) -> list[Difference]:
    """The differences between cells, one of each objective."""
    settings: list[dict[str, Any]] = []
    for name, stage in stages(study):
        column = _settings(run_config(study, cells[name], Path(cells[name].name), stage), name)
        if stage == "then":  # behind the column of its own training
            column |= {key: settings[-1][key] for key in FRESH if key in settings[-1]}
        settings.append(column)
    classes = {str(column["model.class_path"]) for column in settings}
    result = []
    for key in dict.fromkeys(key for column in settings for key in column):
        if study.budget.unit and key.removeprefix("trainer.") in LENGTHS:
            continue
        own = key.startswith(OWN)
        default = None if own else next((value for name in classes if (value := _default(name, key)) is not None), None)
        values = tuple(column.get(key, default) for column in settings)
        if any(value != values[0] for value in values):
            present = [column[key] for column in settings if key in column]
            agree = key in KIND or (own and all(value == present[0] for value in present))
            result.append(Difference(key, values, "by the objective" if agree else _reason(study, key)))
    return result


def show(study: Study, differing: Sequence[Difference]) -> list[list[str]]:
    """Rows of a table of differences, with its head."""
    columns = [name if stage == "train" else f"{name}, then" for name, stage in stages(study)]
    rows = [[d.key, *(_short(value) for value in d.values), d.reason or "not listed"] for d in differing]
    return [["what differs", *columns, "why"], *rows]


def _short(value: Any) -> str:
    """A value as people read it: a class by its name, an absent one not at all."""
    return "" if value is None else re.sub(r"^bamboo\.[\w.]+\.", "", str(value))


def check_arms(study: Study, differing: Sequence[Difference]) -> None:
    """Raise `InputError` where a difference between objectives is one that the study does not list."""
    columns = [name if stage == "train" else f"{name}, then" for name, stage in stages(study)]
    unlisted = [difference for difference in differing if not difference.reason]
    if unlisted:
        values = "; ".join(f"{name}: {value}" for name, value in zip(columns, unlisted[0].values, strict=True))
        others = f", and in {len(unlisted) - 1} more keys" if len(unlisted) > 1 else ""
        raise InputError(
            f"the objectives differ in {unlisted[0].key} ({values}){others}: make them the same, or list the keys "
            "under differs"
        )


def _reason(study: Study, key: str) -> str:
    tuned = [axis_key(name) for name in study.tune.keys]
    for reason, keys in (("tuned", tuned), ("listed", study.differs)):
        if any(key == other or key.startswith(f"{other}.") for other in keys):
            return reason
    return ""


def _settings(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Model, data and what of the trainer bears on training, by the paths of their keys, defaults included."""
    filled = parse(config, f"objective {name}").config.as_dict()
    trainer = {
        key: value for key, value in config["trainer"].items() if key not in WATCHING and not key.startswith("enable_")
    }
    flat = _flatten({"model": filled["model"], "data": filled["data"], "trainer": trainer})
    unused = ["model.init_args.shape", *SPEED]
    if flat[f"{RECIPE}.warmup_share"] is not None:
        unused.append(f"{RECIPE}.warmup_epochs")
    return {key: value for key, value in flat.items() if not key.startswith(tuple(unused))}


def _flatten(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{path}{name}"
        flat |= _flatten(value, f"{key}.") if isinstance(value, Mapping) and name != "decoder_shape" else {key: value}
    return flat


def _default(class_path: str, key: str) -> Any:
    """The default of an argument of a class, None where it has none."""
    module, _, name = class_path.rpartition(".")
    argument = inspect.signature(getattr(import_module(module), name)).parameters.get(key.rpartition(".")[2])
    return None if argument is None or argument.default is argument.empty else argument.default
