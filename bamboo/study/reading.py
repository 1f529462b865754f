"""Studies from YAML, strictly: a key that is unknown, missing or of another kind is one line."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bamboo.analysis.measures.definitions import choose
from bamboo.errors import InputError, unknown
from bamboo.fit.compose import compose, select
from bamboo.shapes import Shape, find_shape

from .configs import merge
from .spec import KINDS, Evaluation, Objective, Study, check


def read_study(path: Path, allow_unequal: bool = False) -> Study:
    """A study from its file; configurations that it names are relative to the file.

    Args:
        path: the file.
        allow_unequal: let shapes differ by more than 2 % in parameters, whatever the file says.

    Raises:
        InputError: names the file and the key at fault.
    """
    content: Any = OmegaConf.to_container(compose(path))
    try:
        return study_of({**content, "allow_unequal": True} if allow_unequal else content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def study_of(content: Mapping[str, Any], folder: Path = Path()) -> Study:
    """A study from what its file holds. Raises `InputError` for a key that is unknown, missing, or of another kind."""
    told = _known("the study", content, Study)
    _require("the study", told, ("name", "shapes", "objectives"))
    parts: dict[str, Any] = {**told, "name": str(told["name"])}
    parts["shapes"] = _shapes(told["shapes"])
    parts["objectives"] = {
        str(name): _objective(str(name), entry, folder) for name, entry in _mapping("objectives", told["objectives"])
    }
    if "seeds" in told:
        parts["seeds"] = _seeds(told["seeds"])
    if "axes" in told:
        parts["axes"] = {name: tuple(_list(f"axes.{name}", values)) for name, values in _mapping("axes", told["axes"])}
    if "evaluation" in told:
        parts["evaluation"] = _evaluation(told["evaluation"])
    if "launch" in told:
        parts["launch"] = tuple(map(str, _list("launch", told["launch"])))
    for name in ("threads", "workers", "train_samples"):
        parts |= {name: _count(name, told[name])} if told.get(name) is not None else {}
    if not isinstance(told.get("allow_unequal", False), bool):
        raise InputError(f"allow_unequal must be true or false, got {told['allow_unequal']!r}")
    return check(Study(**parts))


def _shapes(given: Any) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for entry in _list("shapes", given):
        label, shape = _shape(entry)
        if label in found:
            raise InputError(f"two shapes are called {label}: give them labels, as in {{label: NAME, depth: ...}}")
        found[label] = shape
    return found


def _shape(entry: Any) -> tuple[str, Shape]:
    if isinstance(entry, str):
        return entry, find_shape(entry)
    names = {"label", *(one.name for one in fields(Shape))}
    told = {str(name): value for name, value in _mapping("a shape", entry)}
    for name in told:
        if name not in names:
            raise unknown("key of a shape", name, names)
    _require("a shape", told, ("depth", "width", "heads"))
    label = told.pop("label", None)
    if not all(isinstance(value, int | float) for value in told.values()):
        raise InputError(f"depth, width and heads of a shape must be numbers, got {told}")
    shape = Shape(**told)
    return str(label or shape), shape


def _objective(name: str, entry: Any, folder: Path) -> Objective:
    where = f"objectives.{name}"
    told = _known(where, dict(_mapping(where, entry)), Objective, ("set",))
    _require(where, told, ("kind", "config"))
    if told["kind"] not in KINDS:
        raise unknown(f"kind of {where}", str(told["kind"]), KINDS)
    config, then = _config(where, told, folder), None
    if told.get("then"):
        step = _known(f"{where}.then", dict(_mapping(f"{where}.then", told["then"])), None, ("config", "set"))
        then = _config(f"{where}.then", step, folder)
    return Objective(told["kind"], config, then)


def _config(where: str, told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration files that an entry names, or what they would hold, with what it sets over them."""
    given = told.get("config")
    changes = dict(_mapping(f"{where}.set", told.get("set") or {}))
    if isinstance(given, Mapping):
        config = merge(given, changes)
    else:
        files = [given] if isinstance(given, str) else _list(f"{where}.config", given)
        config = merge(*(compose(folder / str(file)) for file in files), changes)
    if not isinstance(select(config, "model.class_path"), str):
        raise InputError(f"{where}.config names no model.class_path: give a configuration of bamboo fit")
    return config


def _seeds(given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        return tuple(range(_count("seeds", given)))
    seeds = tuple(_list("seeds", given))
    if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise InputError(f"seeds must be a number of them or a list of numbers, got {given}")
    return seeds


def _evaluation(given: Any) -> Evaluation:
    told = _known("evaluation", dict(_mapping("evaluation", given)), Evaluation)
    if "measures" in told:
        told["measures"] = tuple(map(str, _list("evaluation.measures", told["measures"])))
        if "token_similarity" not in choose(told["measures"]):
            raise InputError("evaluation.measures must hold token_similarity, which the claims are about")
    for name in told.keys() - {"measures"}:
        _count(f"evaluation.{name}", told[name], least=0 if name == "pictures" else 1)
    return Evaluation(**told)


def _known(where: str, given: Mapping[str, Any], kind: type | None, more: tuple[str, ...] = ()) -> dict[str, Any]:
    names = {*more, *((one.name for one in fields(kind)) if kind else ())}
    for name in given:
        if name not in names:
            raise unknown(f"key of {where}", str(name), names)
    return dict(given)


def _require(where: str, told: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if told.get(name) in (None, [], {}):
            raise InputError(f"{where} has no {name}: it is needed")


def _mapping(where: str, given: Any) -> Any:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a mapping of keys to values, got {given!r}")
    return given.items()


def _list(where: str, given: Any) -> list[Any]:
    if not isinstance(given, list | tuple) or not given:
        raise InputError(f"{where} must be a list of at least one, got {given!r}")
    return list(given)


def _count(where: str, given: Any, least: int = 1) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise InputError(f"{where} must be a number of at least {least}, got {given!r}")
    return given
