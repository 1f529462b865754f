"""Changes to configurations by the paths of their keys, and to a whole study by the command line."""

import re
from ast import literal_eval
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from omegaconf import OmegaConf

from bamboo.errors import InputError, unknown
from bamboo.fit.compose import select

from .spec import SHORT, Study, axis_key, check, has_key

YAML_WORDS = {"null": None, "true": True, "false": False}


def set_keys(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with keys set, by their paths: mappings are merged into what is there, lists replace it."""
    changed = OmegaConf.create(dict(config))
    for key, value in changes.items():
        OmegaConf.update(changed, key, value)
    return cast(dict[str, Any], OmegaConf.to_container(changed))


def set_everywhere(study: Study, key: str, value: Any) -> Study:
    """A study with a key set in every run that has it."""

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        return set_keys(config, {key: value}) if has_key(config, key) else config

    objectives = {
        name: replace(objective, config=changed(objective.config), then=objective.then and changed(objective.then))
        for name, objective in study.objectives.items()
    }
    return replace(study, objectives=objectives)


def add_axes(study: Study, words: Sequence[str]) -> Study:
    """A study with axes from the command line: a name, then its values, then the next name, if any.

    An axis without values is half, once and twice what is configured.

    Raises:
        InputError: for an axis that no objective has.
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        if word in SHORT or re.fullmatch(r"[a-z_]\w*(\.\w+)+", word):
            axes[word] = []
        elif not axes:
            raise unknown("axis", word, SHORT)
        else:
            axes[next(reversed(axes))].append(_value(word))
    axes = {name: values or _around(study, name) for name, values in axes.items()}
    return check(replace(study, axes={**study.axes, **axes}))


def _value(word: str) -> Any:
    try:
        value = literal_eval(word)
        return [*value] if isinstance(value, tuple) else value
    except (ValueError, SyntaxError):  # a name
        return YAML_WORDS.get(word, word)


def _around(study: Study, name: str) -> list[Any]:
    configured = [select(objective.config, axis_key(name)) for objective in study.objectives.values()]
    number = next((value for value in configured if value is not None), None)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise InputError(f"axis {name} needs values: --axis {name} VALUE VALUE")
    return [number // 2 if isinstance(number, int) else number / 2, number, number * 2]


def united(merged: Study, other: Study, clash: str) -> Study:
    """The grids of two studies put together: their shapes, objectives, seeds and values of axes.

    What is new comes last, but for shapes, which are then sorted by depth: where nothing is, cells keep their numbers.

    Raises:
        InputError: `clash` and what differs, where cells of one name would not be the same in both.
    """
    for name in ("name", "evaluation", "margins", "known_sd", "threads", "launch", "budget", "tune", "equal"):
        if (here := getattr(merged, name)) != (there := getattr(other, name)):
            raise InputError(f"{clash}: {name} is {there}, not {here}")
    if merged.axes.keys() != other.axes.keys():
        raise InputError(f"{clash}: its axes are {[*other.axes]}, not {[*merged.axes]}")
    for kind, left, right in (
        ("shape", merged.shapes, other.shapes),
        ("objective", merged.objectives, other.objectives),
    ):
        if differing := [name for name in left.keys() & right.keys() if left[name] != right[name]]:
            raise InputError(f"{clash}: {kind} {differing[0]} differs")
    shapes = merged.shapes | other.shapes
    if len(shapes) > len(merged.shapes):
        shapes = dict(sorted(shapes.items(), key=lambda item: item[1].depth))
    return replace(
        merged,
        shapes=shapes,
        objectives=merged.objectives | other.objectives,
        axes={name: values + [v for v in other.axes[name] if v not in values] for name, values in merged.axes.items()},
        seeds=[*dict.fromkeys([*merged.seeds, *other.seeds])],
        differs=[*dict.fromkeys([*merged.differs, *other.differs])],
        allow_unequal=merged.allow_unequal or other.allow_unequal,
    )


def additions(before: Study, after: Study) -> list[str]:
    """What the grid of a study holds that it did not before, in words."""
    parts: dict[str, tuple[Collection[Any], Collection[Any]]] = {
        "seeds": (before.seeds, after.seeds),
        "shapes": (before.shapes, after.shapes),
        "objectives": (before.objectives, after.objectives),
        **{f"axis {name}": (before.axes.get(name, []), values) for name, values in after.axes.items()},
    }
    added = {name: [value for value in new if value not in old] for name, (old, new) in parts.items()}
    return [f"{name} {', '.join(map(str, values))}" for name, values in added.items() if values]
