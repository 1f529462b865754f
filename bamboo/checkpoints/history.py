"""What a checkpoint, and the folder of its run if there is one, say of how a model was trained and how well it did."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bamboo.checkpoints.measurements import Number, completed_epochs, read_numbers
from bamboo.recipes import scaled_lr

LIMITS = {"task": "texts", "fraction": 1.0, "shots": None, "samples": None, "validate_on_train": 0.0}
"""Arguments of data that say which part of them is used, and what they are where all is used."""
NAMES = {
    "Digits": "scikit-learn's handwritten digits",
    "ImageFolder": "images",
    "TorchvisionData": "images of torchvision",
    "PackedCorpus": "texts",
    "ShippedEnglish": "the manual of Python's language and WordNet's definitions",
    "GlossSubjects": "WordNet's definitions of nouns",
    "GlueData": "GLUE",
    "TextFiles": "texts",
}
"""What the classes of data read, for people."""


class Data(NamedTuple):
    """Weights or data as a card names them: for people, on Hugging Face's hub if they came from there, and by class."""

    name: str
    hub: str | None = None
    kind: str = ""


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
    return History(
        dict(arguments),
        {key: value for key, value in _recipe(content, arguments, config).items() if value},
        _data(content, config),
        without_folders(str(source)) if source and source != "scratch" else None,
        read_numbers(content, run, config),
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
    last = Path(rest if scheme == "hf" and rest else place).name
    return Data("a folder" if last in ("", "..") else last)


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
    # Every data module keeps how far it is, under the name of its class.
    states = [key for key, state in content.items() if isinstance(state, Mapping) and {*state} == {"epoch", "batches"}]
    options, section = _options(config.get("data")), config.get("data")
    kind = str(section.get("class_path", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""
    if not kind and not states:
        return None
    place = next((without_folders(str(options[key])) for key in ("root", "train") if options.get(key)), None)
    parts = [f"{key} {options[key]}" for key, whole in LIMITS.items() if options.get(key, whole) not in (None, whole)]
    which = str(options.get("name") or (place.name if place else ""))  # a name of torchvision's, or of a folder
    kind, details = kind or states[0], ", ".join([*filter(None, [which]), *parts])
    return Data(f"{NAMES.get(kind, kind)}{f' ({details})' if details else ''}", place.hub if place else None, kind)


def _recipe(content: Mapping[str, Any], arguments: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    parts = (arguments.get("recipe"), content.get("batch"), config.get("trainer"))
    recipe, batch, trainer = (part if isinstance(part, Mapping) else {} for part in parts)
    effective, steps, base = batch.get("effective_batch"), content.get("global_step"), recipe.get("base_lr")
    peak = f", {scaled_lr(base, effective):.3g} at this batch" if base and effective else ""
    product = "{batch_size} x {processes} processes x {accumulate_grad_batches} accumulated"
    return {
        "optimizer": recipe.get("optimizer", ""),
        "learning rate": f"{base:.3g} per 256 samples{peak}" if base else "",
        "schedule": f"{recipe['schedule']}, down to {recipe.get('min_lr', 0):g}" if "schedule" in recipe else "",
        "warm-up": _warmup(recipe),
        "weight decay": f"{recipe['weight_decay']:g}" if "weight_decay" in recipe else "",
        "betas": ", ".join(map(str, recipe.get("betas", ()))),
        "batch": f"{effective} samples a step ({product.format_map(batch)})" if effective else "",
        "steps": f"{steps}{_planned(trainer.get('max_steps'))}" if steps else "",
        "epochs completed": _epochs(content, trainer.get("max_epochs")),
        "samples seen": f"{steps * effective:,}" if steps and effective else "",
        "precision": str(trainer.get("precision") or ""),
        "gradients clipped at": str(trainer.get("gradient_clip_val") or ""),
        "seed": str(arguments.get("seed", "")),
    }


def _warmup(recipe: Mapping[str, Any]) -> str:
    share, epochs = recipe.get("warmup_share"), recipe.get("warmup_epochs")
    if share is not None:
        return f"{share:.1%} of the run"
    return "" if epochs is None else f"{epochs:g} epoch{'s' * (epochs != 1)}"


def _epochs(content: Mapping[str, Any], planned: int | None) -> str:
    completed = completed_epochs(content)
    return f"{completed:g}{_planned(planned)}" if math.isfinite(completed) else ""


def _planned(number: int | None) -> str:
    return f" of {number}" if (number or -1) > 0 else ""  # -1 stands for no limit
