"""Changes to configurations by the paths of their keys, and to a whole study by the command line."""

import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from omegaconf import OmegaConf

from bamboo.errors import InputError, unknown
from bamboo.fit.compose import select

from .spec import SHORT, Study, axis_key, check, has_key


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
        return literal_eval(word)
    except (ValueError, SyntaxError):  # a name
        return word


def _around(study: Study, name: str) -> list[Any]:
    configured = [select(objective.config, axis_key(name)) for objective in study.objectives.values()]
    number = next((value for value in configured if value is not None), None)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise InputError(f"axis {name} needs values: --axis {name} VALUE VALUE")
    return [number // 2 if isinstance(number, int) else number / 2, number, number * 2]
