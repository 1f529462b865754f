"""Which class of a model a class of the data is: by name, by number, or by a file that says so."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bamboo.errors import InputError


@dataclass
class Matching:
    """What labels of data are among the classes of a model.

    Args:
        classes: names of the model's classes.
        data: names of the classes of the data.
        places: of each class of the data among the model's (data classes,), -1 for one without images; None where the
            two are the same.
        absent: which classes of the model are none of the data's (classes,), and compete with none; None where all do.
    """

    classes: list[str]
    data: list[str]
    places: Tensor | None = None
    absent: Tensor | None = None

    @classmethod
    def by_name(cls, classes: list[str], data: list[str]) -> "Matching":
        """Of classes that have the same names, in any order. Raises `InputError` where they have others."""
        return cls(classes, data, None if data == classes else torch.tensor(class_order(classes, data)))

    @classmethod
    def by_map(cls, classes: list[str], data: list[str], class_map: str, present: list[int]) -> "Matching":
        """Of data that may have fewer classes, by a class map.

        Args:
            classes: as above.
            data: as above; a source may name more classes than it has images of.
            class_map: see `mapped_classes`, which raises `InputError`.
            present: numbers of the classes that there are images of.
        """
        found = torch.tensor(mapped_classes(classes, [data[label] for label in present], class_map))
        places = torch.full([len(data)], -1).index_copy(0, torch.tensor(present), found)
        return cls(classes, data, places, torch.ones(len(classes), dtype=torch.bool).index_fill(0, found, False))

    def labels(self, labels: Tensor) -> Tensor:
        """Labels of the data (B,) as numbers of the model's classes."""
        if self.places is None:
            return labels
        self.places = self.places.to(labels.device)
        return self.places[labels]

    def competing(self, logits: Tensor) -> Tensor:
        """Logits (B, classes), minus infinity for the classes that compete with none."""
        if self.absent is None:
            return logits
        self.absent = self.absent.to(logits.device)
        return logits.masked_fill(self.absent, -torch.inf)

    def name(self, label: int) -> str:
        """What the model calls a class of the data."""
        return self.data[label] if self.places is None else self.classes[int(self.places[label])]

    def __str__(self) -> str:
        if self.places is None or self.absent is None:
            return f"{len(self.data)} classes, those of the model"
        present, competing = int((self.places >= 0).sum()), int((~self.absent).sum())
        return f"{present} classes of the data are {competing} of the model's {len(self.classes)}; no other competes"


def class_order(model: Sequence[str], data: Sequence[str]) -> list[int]:
    """Place in `model` of each class of `data`, by name.

    Raises:
        InputError: where the names are not the same, naming some that are in one of them alone.
    """
    differences = []
    for where, names in ("model", set(model) - set(data)), ("data", set(data) - set(model)):
        if names:
            some = ", ".join(map(repr, sorted(names)[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
            differences.append(f"only in the {where}: {some}")
    if differences:
        raise InputError(f"the classes of the model are not those of the data; {'; '.join(differences)}")
    places = {name: place for place, name in enumerate(model)}
    return [places[name] for name in data]


def mapped_classes(model: Sequence[str], data: Sequence[str], class_map: str) -> list[int]:
    """Place in `model` of each class of `data`, which may be fewer.

    Args:
        model: names of the classes of a checkpoint.
        data: names of those of the data.
        class_map: `name`, where classes of the data have the names of the checkpoint's; `number`, where they are called
            by their place among the checkpoint's, as in ImageNet-V2; else a text file with a line for each class of the
            data: its name, then the checkpoint's, with a tab between them, or a comma (as in CSV), or blanks.

    Raises:
        InputError: where a class has no place, or the file cannot be read.
    """
    places = {name: place for place, name in enumerate(model)}
    if class_map == "name":
        place_of = {name: places.get(name) for name in data}
    elif class_map == "number":
        place_of = {name: int(name) if name.isdecimal() and int(name) < len(model) else None for name in data}
    else:
        names = _read_class_map(Path(class_map))
        place_of = {name: places.get(names.get(name, "")) for name in data}
    missing = [name for name in data if place_of[name] is None]
    if missing:
        raise InputError(
            f"class_map {class_map}: {len(missing)} of {len(data)} classes of the data have no place among the "
            f"{len(model)} of the model: {', '.join(map(repr, missing[:3]))}"
        )
    return [place for place in place_of.values() if place is not None]


def _read_class_map(path: Path) -> dict[str, str]:
    """The checkpoint's name for each class of the data; see `mapped_classes`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class_map {path} is neither name nor number nor a file that can be read") from error
    names: dict[str, str] = {}
    for line in filter(str.strip, lines):
        fields = line.split("\t")
        if len(fields) == 1:
            fields = next(csv.reader([line], skipinitialspace=True)) if "," in line else line.split()
        data_name, model_name, *_ = [*(field.strip() for field in fields), ""]
        if names.setdefault(data_name, model_name) != model_name:
            raise InputError(
                f"class_map {path}: class {data_name!r} stands there twice, as {names[data_name]!r} and {model_name!r}"
            )
    return names
