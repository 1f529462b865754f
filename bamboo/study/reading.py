"""Studies from YAML, strictly: a key that is unknown, missing or of another type is one line."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bamboo.analysis.measures.definitions import choose
from bamboo.errors import InputError, unknown
from bamboo.fit.compose import compose, find_config, select
from bamboo.shapes import Shape, find_shape

from .spec import KINDS, Budget, Evaluation, Objective, Study, Tuning, check


@dataclass
class Stage:
    """A training in a study's file.

    Args:
        config: name or path of a configuration, several of them, or what they would hold.
        set: keys over that.
    """

    config: Any = MISSING
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class ObjectiveEntry(Stage):
    """An objective in a study's file; `then` is the stage that follows."""

    kind: str = MISSING
    then: Any = None


def read_study(path: Path, allow_unequal: bool = False) -> Study:
    """A study from its file, whatever number of parameters its shapes have if `allow_unequal`.

    Configurations are named as in `bamboo fit --config`, or by paths relative to the file.

    Raises:
        InputError: names the file and the key at fault.
    """
    content = cast(dict[str, Any], OmegaConf.to_container(compose(path)))
    try:
        return study_of({**content, "allow_unequal": True} if allow_unequal else content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def study_of(content: Mapping[str, Any], folder: Path = Path()) -> Study:
    """A study from what its file holds. Raises `InputError` for a key that is unknown, missing, or of another type."""
    content = dict(content)
    seeds, shapes, objectives = (content.pop(name, None) for name in ("seeds", "shapes", "objectives"))
    if seeds is not None:
        content["seeds"] = list(range(seeds)) if type(seeds) is int else seeds
    settings = _typed(Study, content)
    for name, value, kind in (("shapes", shapes, list), ("objectives", objectives, dict)):
        if not value or not isinstance(value, kind):
            raise InputError(f"{name} must be a {kind.__name__} of at least one, got {value!r}")
    for name, schema in (("evaluation", Evaluation), ("budget", Budget), ("tune", Tuning)):
        settings[name] = schema(**settings[name])
    settings["shapes"] = _shapes(shapes)
    settings["objectives"] = {name: _objective(f"objectives.{name}", objectives[name], folder) for name in objectives}
    if "token_similarity" not in choose(settings["evaluation"].measures):
        raise InputError("evaluation.measures must hold token_similarity, which the claims are about")
    return check(Study(**settings))


def _shapes(entries: list[Any]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for entry in entries:
        numbers = dict(entry) if isinstance(entry, Mapping) else str(entry)
        label = numbers.pop("label", None) if isinstance(numbers, dict) else numbers
        shape = find_shape(numbers)
        label = str(label or shape)
        if label in shapes:
            raise InputError(f"two shapes are called {label}: give them labels, as in {{label: NAME, depth: ...}}")
        shapes[label] = shape
    return shapes


def _objective(where: str, entry: Any, folder: Path) -> Objective:
    stage = _typed(ObjectiveEntry, entry, where)
    if stage["kind"] not in KINDS:
        raise unknown(f"kind of {where}", stage["kind"], KINDS)
    config, then = _config(where, stage, folder), None
    if stage["then"] is not None:
        then = _config(f"{where}.then", _typed(Stage, stage["then"], f"{where}.then"), folder)
    trained = select(config, "model.init_args.objective") or "masked"
    if trained != stage["kind"] and "causal" in (trained, stage["kind"]):
        raise InputError(f"{where} is of kind {stage['kind']}, and its model.init_args.objective is {trained}")
    return Objective(stage["kind"], config, then)


def _config(where: str, stage: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration files that a stage names, or what they would hold, with what it sets over them."""
    below = stage["config"]
    if not isinstance(below, Mapping):
        names = below if isinstance(below, list) else [below]
        below = compose(*(folder / str(name) if Path(str(name)).suffix else find_config(str(name)) for name in names))
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(below, stage["set"])))
    if not isinstance(select(config, "model.class_path"), str):
        raise InputError(f"{where}.config names no model.class_path: give a configuration of bamboo fit")
    return config


def _typed(schema: type, content: Any, where: str = "") -> dict[str, Any]:
    """Content as plain data with all fields of a dataclass, each of its type.

    Raises:
        InputError: names the key at fault, below `where`.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), content)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = ".".join(filter(None, (where, getattr(error, "full_key", None))))
        raise InputError(": ".join(filter(None, (key, str(error).splitlines()[0])))) from error
    for name in (entry.name for entry in fields(schema)):
        if OmegaConf.is_missing(config, name):
            raise InputError(f"{where or 'the study'} has no {name}: it is needed")
    return cast(dict[str, Any], OmegaConf.to_container(config))
