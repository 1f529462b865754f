"""A study: a grid of shapes x objectives x further axes x seeds, read from a short YAML, and its cells."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from bamboo.cli.compose import compose
from bamboo.errors import InputError, unknown
from bamboo.shapes import Shape, find_shape

Kind = Literal["masked", "supervised"]
KINDS = ("masked", "supervised")
UNEQUAL = 0.02
"""Shapes of a ladder may differ in block parameters by this share of the first one's."""

SHORT = {"batch_size": "data.init_args.batch_size", "pool": "model.init_args.pool"}
"""Axes that have a short name; any other is the path of a key of the configuration."""


@dataclass(frozen=True)
class Objective:
    """What cells are trained by.

    Args:
        kind: `masked` or `supervised`: which of the claims it belongs to.
        config: what `bamboo fit` is run with, but for shape, seed and axes.
        then: what follows, started from the trained encoder: a fine-tuning, whose accuracy is that of the cell.
    """

    kind: Kind
    config: dict[str, Any]
    then: dict[str, Any] | None = None

    @property
    def reads_text(self) -> bool:
        """Whether its model is one of `bamboo.text`."""
        return str(self.config["model"]["class_path"]).startswith("bamboo.text.")


@dataclass(frozen=True)
class Evaluation:
    """What is measured of every cell.

    Args:
        samples: training samples, and held-out ones, that similarity is measured on.
        measures: names or groups, as for `bamboo profile --measures`; token_similarity must be among them.
        points: times during training at which similarity is looked at, the start included.
        point_samples: held-out samples that it is looked at on.
        probe_samples: training samples, and held-out ones, at most for nearest neighbours and the linear probe.
        probe_epochs: passes of the linear probe over its features.
        pictures: held-out images that are reconstructed and mapped.
    """

    samples: int = 256
    measures: tuple[str, ...] = ("token_similarity", "cls_similarity", "high_frequency_ratio", "effective_rank")
    points: int = 8
    point_samples: int = 64
    probe_samples: int = 10_000
    probe_epochs: int = 50
    pictures: int = 3


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        number: its place in the grid, from 0.
        shape: depth, width and heads.
        label: what the shape is called.
        objective: name of the objective.
        axes: name and value of each further axis that the objective has.
        seed: of weights, order, masks and, where the data have no split of their own, of the split.
    """

    number: int
    shape: Shape
    label: str
    objective: str
    axes: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder, such as `mae-16x64-seed0`."""
        parts = [self.objective, self.label, *(f"{name.split('.')[-1]}_{value}" for name, value in self.axes)]
        return re.sub(r"[^\w.+-]", "_", "-".join([*parts, f"seed{self.seed}"]))


@dataclass(frozen=True)
class Study:
    """A grid and how its cells are measured.

    Args:
        name: what it is called.
        shapes: by their labels, in the order of the ladder.
        objectives: by their names.
        seeds: one cell of each kind per seed.
        axes: further axes: a short name or the path of a key, and its values. An axis belongs to the objectives whose
            own training has the key; what follows is not changed by it.
        evaluation: what is measured.
        threads: of each worker on a CPU; their number decides the last bits of sums.
        launch: command that `fit ...` is appended to, such as [torchrun, --nproc-per-node=8, -m, bamboo], to train
            on several devices; by default training runs in the worker.
        allow_unequal: let shapes differ by more than 2 % in parameters.
        workers: cells at a time on a CPU; it does not change the result.
        train_samples: size of the training set, for estimates where the data are not at hand.
    """

    name: str
    shapes: dict[str, Shape]
    objectives: dict[str, Objective]
    seeds: tuple[int, ...] = (0, 1, 2)
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    threads: int = 1
    launch: tuple[str, ...] = ()
    allow_unequal: bool = False
    workers: int = 2
    train_samples: int | None = None

    def cells(self) -> list[Cell]:
        """The grid, seed by seed, so that a study that is cut short has all shapes and objectives of some seeds."""
        places = itertools.product(self.seeds, self.objectives, self.shapes)
        grid = ((place, axes) for place in places for axes in self._settings(place[1]))
        return [
            Cell(number, self.shapes[label], label, name, axes, seed)
            for number, ((seed, name, label), axes) in enumerate(grid)
        ]

    def _settings(self, objective: str) -> Iterator[tuple[tuple[str, Any], ...]]:
        """Combinations of values of the axes that an objective has: those whose key its configuration holds."""
        config = self.objectives[objective].config
        own = {name: values for name, values in self.axes.items() if has_key(config, axis_key(name))}
        for values in itertools.product(*own.values()):
            yield tuple(zip(own, values, strict=True))

    def cell(self, number: int) -> Cell:
        """A cell by its number. Raises `InputError` where there is none."""
        cells = self.cells()
        if not 0 <= number < len(cells):
            raise InputError(f"there is no cell {number}: the study has cells 0 to {len(cells) - 1}")
        return cells[number]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, complete in itself; `study_of` reads it back."""
        told = asdict(self)
        told["shapes"] = [{"label": label, **asdict(shape)} for label, shape in self.shapes.items()]
        for objective in told["objectives"].values():
            objective["then"] = objective["then"] and {"config": objective["then"]}
        plain: dict[str, Any] = _plain({key: value for key, value in told.items() if value not in ((), {}, None)})
        return plain

    def identity(self) -> dict[str, Any]:
        """What decides the results of its cells, without what decides which cells there are."""
        told = self.to_dict()
        return {key: told.get(key) for key in ("name", "evaluation", "threads", "launch")}


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


def check(study: Study) -> Study:
    """The study itself, if it can be run.

    Raises:
        InputError: where shapes are not equal in parameters, an axis belongs to no objective, or cells share a name.
    """
    (first, budget), *others = study.shapes.items()
    for label, shape in others:
        off = shape.parameters / budget.parameters - 1
        if abs(off) > UNEQUAL and not study.allow_unequal:
            raise InputError(
                f"shape {label} has {off:+.1%} of the parameters of {first} ({shape.parameters:,} against "
                f"{budget.parameters:,}), and a ladder is equal to {UNEQUAL:.0%}: change it, or set allow_unequal"
            )
    for name in study.axes:
        if not any(has_key(one.config, axis_key(name)) for one in study.objectives.values()):
            raise InputError(f"axis {name}: no objective configures the key {axis_key(name)}")
    names = [cell.name for cell in study.cells()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"two cells are called {twice}: give their shapes a label, or remove what is there twice")
    return study


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
    found = [value for one in study.objectives.values() if (value := _select(one.config, axis_key(name))) is not None]
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


def axis_key(name: str) -> str:
    """The path of the key that an axis sets."""
    return SHORT.get(name, name)


def at(key: str, value: Any) -> dict[str, Any]:
    """A nested mapping that holds a value at the path of a key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def merge(*configs: Mapping[str, Any], resolve: bool = False) -> dict[str, Any]:
    """Configurations over one another, later ones over earlier ones; lists are replaced."""
    merged = OmegaConf.merge(*(OmegaConf.create(dict(config)) for config in configs))
    return OmegaConf.to_container(merged, resolve=resolve)  # type: ignore[return-value]


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a configuration holds a key, given by its path."""
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True


def _select(config: Mapping[str, Any], key: str) -> Any:
    here: Any = config
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


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
    if not isinstance(_select(config, "model.class_path"), str):
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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
