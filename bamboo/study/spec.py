"""A study: a grid of shapes x objectives x further axes x seeds, and its cells."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bamboo.errors import InputError
from bamboo.shapes import Shape

KINDS = ("masked", "supervised")
UNEQUAL = 0.02
"""Shapes of a ladder may differ in block parameters by this share of the first one's."""

SHORT = {"batch_size": "data.init_args.batch_size", "pool": "model.init_args.pool"}
"""Axes that have a short name; any other is the path of a key of the configuration."""


@dataclass(frozen=True)
class Objective:
    """What cells are trained by: a configuration of `bamboo fit`, but for shape, seed and axes.

    `kind` is `masked` or `supervised`, which decides on its claims; `then` is a fine-tuning of the trained encoder,
    whose accuracy is that of the cell.
    """

    kind: str
    config: dict[str, Any]
    then: dict[str, Any] | None = None

    @property
    def reads_text(self) -> bool:
        """Whether its model is one of `bamboo.text`."""
        return str(self.config["model"]["class_path"]).startswith("bamboo.text.")


MEASURES = (
    *("token_similarity", "between_similarity", "excess_similarity"),
    *("cls_similarity", "high_frequency_ratio", "effective_rank"),
)


@dataclass(frozen=True)
class Evaluation:
    """What is measured of every cell.

    Args:
        samples: training samples, and held-out ones, that `measures` are taken of.
        measures: names or groups, as for `bamboo profile --measures`; token_similarity must be among them.
        points: times during training at which similarity is looked at, on `point_samples` held-out samples.
        probe_samples: training samples, and held-out ones, at most for nearest neighbours and the linear probe.
        pictures: held-out images that are reconstructed and mapped.
    """

    samples: int = 256
    measures: list[str] = field(default_factory=lambda: [*MEASURES])
    points: int = 8
    point_samples: int = 64
    probe_samples: int = 10_000
    probe_epochs: int = 50
    pictures: int = 3


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a shape by its label, an objective by its name, values of further axes, and a seed.

    The seed is that of weights, order, masks and, where the data have no split of their own, of the split.
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
        shapes: by their labels, in the order of the ladder.
        axes: further axes: a short name or the path of a key, and its values. An axis belongs to the objectives whose
            own training has the key; what follows is not changed by it.
        threads: of each worker on a CPU; their number decides the last bits of sums.
        launch: command that `fit ...` is appended to, such as [torchrun, --nproc-per-node=8, -m, bamboo], to train
            on several devices; by default training runs in the worker.
        allow_unequal: let shapes differ by more than 2 % in parameters.
        workers: cells at a time on a CPU; it does not change the result.
        train_samples: size of the training set, for estimates where the data are not at hand.
    """

    name: str
    shapes: dict[str, Shape] = field(default_factory=dict)
    objectives: dict[str, Objective] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    axes: dict[str, list[Any]] = field(default_factory=dict)
    evaluation: Evaluation = Evaluation()
    threads: int = 1
    launch: list[str] = field(default_factory=list)
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
            hashable = (tuple(value) if isinstance(value, list) else value for value in values)
            yield tuple(zip(own, hashable, strict=True))

    def cell(self, number: int) -> Cell:
        """A cell by its number. Raises `InputError` where there is none."""
        cells = self.cells()
        if not 0 <= number < len(cells):
            raise InputError(f"there is no cell {number}: the study has cells 0 to {len(cells) - 1}")
        return cells[number]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, complete in itself, in the form of a study's file."""
        content = asdict(self)
        content["shapes"] = [{"label": label, **asdict(shape)} for label, shape in self.shapes.items()]
        for objective in content["objectives"].values():
            objective["then"] = objective["then"] and {"config": objective["then"]}
        return {key: value for key, value in content.items() if value not in ([], {}, None)}


def check(study: Study) -> Study:
    """The study itself, if it can be run.

    Raises:
        InputError: where a number is not positive, shapes are not equal in parameters, an axis has a mapping as a value
            or belongs to no objective, or cells share a name.
    """
    counts = {"seeds": len(study.seeds), "threads": study.threads, "workers": study.workers}
    counts["train_samples"] = 1 if study.train_samples is None else study.train_samples
    counts |= {f"evaluation.{name}": n for name, n in vars(study.evaluation).items() if isinstance(n, int)}
    counts |= {f"axes.{name}": len(values) for name, values in study.axes.items()}
    for name, count in counts.items():
        if count < (least := 0 if name == "evaluation.pictures" else 1):
            raise InputError(f"{name} must be at least {least}, got {count}")
    (first, budget), *others = study.shapes.items()
    for label, shape in others:
        off = shape.parameters / budget.parameters - 1
        if abs(off) > UNEQUAL and not study.allow_unequal:
            raise InputError(
                f"shape {label} has {off:+.1%} of the parameters of {first} ({shape.parameters:,} against "
                f"{budget.parameters:,}), and a ladder is equal to {UNEQUAL:.0%}: change it, or set allow_unequal"
            )
    for name, values in study.axes.items():
        if any(isinstance(value, dict) for value in values):
            raise InputError(f"axes.{name}: a value is a mapping of keys; give an axis for each key, as in {name}.KEY")
        if not any(has_key(objective.config, axis_key(name)) for objective in study.objectives.values()):
            raise InputError(f"axis {name}: no objective configures the key {axis_key(name)}")
    (name, times), *_ = Counter(cell.name for cell in study.cells()).most_common(1)
    if times > 1:
        raise InputError(f"two cells are called {name}: give their shapes a label, or remove what is there twice")
    return study


def axis_key(name: str) -> str:
    """The path of the key that an axis sets."""
    return SHORT.get(name, name)


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a configuration holds a key, given by its path."""
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True
