"""How a person spells where data are: a path or a name, and options behind it, as in `hf:NAME,config=en,train=all`."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from bamboo.errors import unknown


class Location(NamedTuple):
    """A path or a name, and the options that follow it."""

    path: str
    options: dict[str, str]


def parse_location(text: str, allowed: Iterable[str]) -> Location:
    """Split a spelling at the commas of its trailing `,key=value`, so that a path may hold commas.

    Raises:
        InputError: names an option that is none of `allowed`.
    """
    path, options = text, {}
    while option := re.fullmatch(r"(.+),([a-z_]+)=([^,]*)", path):
        path, key, value = option.groups()
        if key not in {*allowed}:
            raise unknown("option", key, allowed)
        options[key] = value
    return Location(path, dict(reversed(options.items())))
