"""Changes that the command line makes to a study: further axes, and keys of its configurations."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bamboo.errors import InputError, unknown
from bamboo.fit.compose import select

from .configs import at, has_key, merge
from .spec import SHORT, Study, axis_key, check


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
            raise unknown("axis", word, [*SHORT, *axes])
        else:
            axes[next(reversed(axes))].append(_value(word))
    for name, values in axes.items():
        axes[name] = values or _around(study, name)
    return check(replace(study, axes={**study.axes, **{name: tuple(values) for name, values in axes.items()}}))


def _value(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _around(study: Study, name: str) -> list[Any]:
    found = [value for one in study.objectives.values() if (value := select(one.config, axis_key(name))) is not None]
    if not found or isinstance(found[0], str | bool):
        raise InputError(f"axis {name} needs values: --axis {name} VALUE VALUE")
    return [found[0] // 2 if isinstance(found[0], int) else found[0] / 2, found[0], found[0] * 2]


def change_configs(study: Study, key: str, value: Any) -> Study:
    """A study with a key set in every run that has it."""

    def changed(config: dict[str, Any]) -> dict[str, Any]:
        return merge(config, at(key, value)) if has_key(config, key) else config

    objectives = {
        name: replace(one, config=changed(one.config), then=one.then and changed(one.then))
        for name, one in study.objectives.items()
    }
    return replace(study, objectives=objectives)
