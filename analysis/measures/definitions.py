"""What every measure is called, how it is defined, and how to read it: one table for code, command line and report."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bamboo.errors import InputError, unknown


class Definition(NamedTuple):
    """A measure as people see it: a row of definitions.csv.

    Args:
        name: in tables and on the command line.
        group: measures that are chosen together.
        title: a name for an axis.
        formula: the definition; X has the n tokens x_i that count as rows, m is their mean.
        reading: what a value says.
    """

    name: str
    group: str
    title: str
    formula: str
    reading: str


with Path(__file__).with_name("definitions.csv").open(encoding="utf-8", newline="") as file:
    DEFINITIONS = {row["name"]: Definition(**row) for row in csv.DictReader(file)}
GROUPS = tuple(dict.fromkeys(definition.group for definition in DEFINITIONS.values()))


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The measures that names of measures and groups (`all` for every one) stand for, in the order of the table.

    Raises:
        InputError: for an unknown name, with near ones, or where there is none.
    """
    if not names:
        raise InputError("no measure was chosen: name some with --measures")
    for name in names:
        if name not in (*DEFINITIONS, *GROUPS, "all"):
            raise unknown("measure", name, [*DEFINITIONS, *GROUPS, "all"])
    return tuple(d.name for d in DEFINITIONS.values() if {"all", d.name, d.group}.intersection(names))


def describe(measure: str) -> Definition:
    """The definition of a measure; a ring of the spectrum, such as `spectrum/2`, has that of the spectrum."""
    return DEFINITIONS[measure.partition("/")[0]]
