"""How a model was trained and measured, as its checkpoint says it, and the folder of its run where it lies in one."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HUB = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)(,[^/\\]*)?")


def hub_name(source: str) -> str | None:
    """The name on Hugging Face's hub of data or weights that came from there."""
    match = HUB.fullmatch(source)
    return match[1] if match and not Path(match[1]).exists() else None


def plain(value: Any) -> Any:
    """A value as YAML holds it, without what is not set, and with the last part alone of a path."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str) and not hub_name(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def read_recipe(content: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """All that was configured of a training, as `plain` values; empty for a file that is none of this project."""
    arguments = content.get("hyper_parameters")
    if "state_dict" not in content or not isinstance(arguments, Mapping):
        return {}
    options, data, trainer = _configured(run)
    start = options.get("encoder") or options.get("init_from")
    # Every data module keeps how far it is, under the name of its class.
    states = (key for key, state in content.items() if isinstance(state, Mapping) and {*state} == {"epoch", "batches"})
    recipe = {
        "start": start if isinstance(start, str) and start != "scratch" else None,
        "data": {"class_path": next(states, None), **data},
        "model": {**arguments, "model_config": None},  # which config.json holds
        "trainer": {key: trainer.get(key) for key in ("max_epochs", "max_steps", "precision", "gradient_clip_val")},
        "batch": content.get("batch"),
        "steps": content.get("global_step"),
    }
    return {key: value for key, value in plain(recipe).items() if value != {}}


def read_measured(content: Mapping[str, Any], run: Path | None) -> dict[str, float]:
    """What was logged in validation of exactly the weights of a checkpoint, and what `NeighbourProbe` measured last."""
    step = content.get("global_step", 0) - 1  # at which validation after so many steps is logged
    logged = (*_table(run / "metrics.csv"), *_events(run)) if run else ()
    measured = {tag: value for tag, at, value in logged if at == step and tag.startswith(("val/", "probe/"))}
    for name, value in content.get("callbacks", {}).get("NeighbourProbe", {}).get("accuracy", {}).items():
        measured[f"nearest neighbours, {name}, when last measured"] = value
    return {tag: value for tag, value in measured.items() if math.isfinite(value) and not tag.endswith("_per_s")}


def _configured(run: Path | None) -> list[dict[str, Any]]:
    """Of a run the arguments of its model, its data and its trainer; empty where there is none, or not one of ours."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run else {}
        return [dict(part or {}) for part in (config["model"]["init_args"], config["data"], config["trainer"])]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return [{}, {}, {}]


def _table(path: Path) -> list[tuple[str, int, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [(tag, int(row["step"]), float(value)) for row in rows for tag, value in row.items() if value]
    except (OSError, ValueError, TypeError, LookupError):  # absent, or another table of that name
        return []


def _events(run: Path) -> list[tuple[str, int, float]]:
    if not any(run.glob("events.out.tfevents.*")):
        return []
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    events = event_accumulator.EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [(tag, at.step, at.value) for tag in events.Tags()["scalars"] for at in events.Scalars(tag)]
