"""A study: a grid of shapes x objectives x further axes x seeds, and its cells."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bamboo.errors import InputError, unknown
from bamboo.fit.compose import resolve
from bamboo.shapes import Patches, Shape

UNSUPERVISED = ("masked", "causal")
KINDS = (*UNSUPERVISED, "supervised")
EQUAL = ("parameters", "flops")
UNEQUAL = 0.02
"""Shapes of a ladder may differ in what is equal by this share of the first one's."""

MARGINS = {
    **{"accuracy": 0.005, "masked_accuracy": 0.005, "next_accuracy": 0.005},
    **{"excess": 0.02, "loss_longest": 0.02, "loss_beyond": 0.02},
}
"""Numbers that claims are about, and below what size a difference is none, unless a study says otherwise."""

SHORT = {
    "batch_size": "data.init_args.batch_size",
    "pool": "model.init_args.pool",
    "init": "model.init_args.init",
    "attention": "model.init_args.attention",
    "base_lr": "model.init_args.recipe.base_lr",
    "positions": "model.init_args.positions",
    "adaptive": "model.init_args.adaptive",
}
"""Keys that have a short name as axes and in `tune`; any other is the path of a key of the configuration."""


@dataclass(frozen=True)
class Objective:
    """What cells are trained by: a configuration of `bamboo fit`, but for shape, seed and axes.

    `kind` is `masked`, `causal` or `supervised`, which decides on its claims; `then` is a fine-tuning of the trained
    encoder, whose accuracy is that of the cell.
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
        points: times during training at which similarity is looked at, on `point_samples` held-out samples, evenly
            spaced in log steps, for it moves most at first.
        probe_samples: training samples, and held-out ones, at most for nearest neighbours and the linear probe.
        pictures: held-out images that are reconstructed and mapped.
        lengths: of windows of held-out text, in tokens, at which causal models are evaluated (`bamboo.study.lengths`).
            The least should be that of training, of which a block asks for all tokens but two.
        windows: of each length, at most.
    """

    samples: int = 256
    measures: list[str] = field(default_factory=lambda: [*MEASURES])
    points: int = 16
    point_samples: int = 64
    probe_samples: int = 10_000
    probe_epochs: int = 50
    pictures: int = 3
    lengths: list[int] = field(default_factory=list)
    windows: int = 32


@dataclass(frozen=True)
class Budget:
    """What each cell may spend on training, the same for all of them, in one of three units.

    It takes the place of the epochs and steps of the configurations.

    Args:
        samples: training samples seen.
        flops: of training, forward and backward.
        seconds: of training; what a machine does in that time is its own, so such a study is not repeatable.
        then: share that goes to what follows the training of an objective, where something does.
    """

    samples: float | None = None
    flops: float | None = None
    seconds: float | None = None
    then: float = 0.2

    @property
    def unit(self) -> str | None:
        """Which of the three is given, if any."""
        return next((name for name in ("samples", "flops", "seconds") if getattr(self, name) is not None), None)

    def share(self, stage: str, follows: bool) -> float:
        """The share of stage `train` or `then` of an objective that something `follows`, or not."""
        return self.then if stage == "then" else 1 - self.then * follows


@dataclass(frozen=True)
class Tuning:
    """Keys whose values are chosen for each shape, objective and setting of axes, before its first cell is trained.

    Every combination is trained with the study's first seed, and the lowest validation loss of the objective itself
    chooses, on images that are taken away from the training set for that purpose; what is held out has no say in it.

    Args:
        keys: as in axes, and the values to try.
        share: of the budget of a cell's own training, that each combination is trained for.
        held_out: share of the training images that chooses.
    """

    keys: dict[str, list[Any]] = field(default_factory=dict)
    share: float = 0.25
    held_out: float = 0.1


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
        return folder_name(*parts, f"seed{self.seed}")


def folder_name(*parts: str) -> str:
    """Parts joined to a name that any file system takes."""
    return re.sub(r"[^\w.+-]", "_", "-".join(parts))


@dataclass(frozen=True)
class Study:
    """A grid and how its cells are measured.

    Args:
        shapes: by their labels, in the order of the ladder.
        axes: further axes: a short name or the path of a key, and its values. An axis sets its key in the training of
            the objectives that have it there, or else in what follows it.
        budget: what each cell may spend; without one the lengths of training are those that are configured.
        differs: keys in which objectives may differ, or the beginnings of their paths: see `bamboo.study.arms`.
        tune: keys to choose for each shape and objective.
        equal: what the shapes of the ladder have in common: block `parameters`, or the `flops` of a forward pass.
        threads: of each worker on a CPU; their number decides the last bits of sums.
        launch: command that `fit ...` is appended to, such as [torchrun, --nproc-per-node=8, -m, bamboo], to train
            on several devices; by default training runs in the worker.
        allow_unequal: let shapes differ by more than 2 % in that.
        workers: cells at a time on a CPU; it does not change the result.
        margins: by number, the size below which a difference, or a change when depth doubles, is none.
        known_sd: by number, its standard deviation over seeds as published, for claims from one seed.
        train_samples: size of the training set, for estimates where the data are not at hand.
    """

    name: str
    shapes: dict[str, Shape] = field(default_factory=dict)
    objectives: dict[str, Objective] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    axes: dict[str, list[Any]] = field(default_factory=dict)
    budget: Budget = Budget()
    differs: list[str] = field(default_factory=list)
    tune: Tuning = field(default_factory=Tuning)
    equal: str = "parameters"
    evaluation: Evaluation = Evaluation()
    threads: int = 1
    launch: list[str] = field(default_factory=list)
    allow_unequal: bool = False
    workers: int = 2
    margins: dict[str, float] = field(default_factory=lambda: {**MARGINS})
    known_sd: dict[str, float] = field(default_factory=dict)
    train_samples: int | None = None

    def cells(self) -> list[Cell]:
        """The grid, seed by seed, so that a study that is cut short has all shapes and objectives of some seeds.

        Of a seed the first setting of each objective comes before the second one, for what two settings have in
        common is trained once.
        """
        settings = {name: self._settings(name) for name in self.objectives}
        grid = [
            (seed, place, name, label, axes)
            for seed, name, label in itertools.product(self.seeds, self.objectives, self.shapes)
            for place, axes in enumerate(settings[name])
        ]
        grid.sort(key=lambda cell: (self.seeds.index(cell[0]), cell[1]))  # which keeps the order of what is equal
        return [
            Cell(number, self.shapes[label], label, name, axes, seed)
            for number, (seed, _, name, label, axes) in enumerate(grid)
        ]

    def _settings(self, objective: str) -> list[tuple[tuple[str, Any], ...]]:
        """Combinations of values of the axes that an objective has."""
        own = {name: values for name, values in self.axes.items() if self.stage_of(objective, name)}
        return [
            tuple(zip(own, (tuple(value) if isinstance(value, list) else value for value in values), strict=True))
            for values in itertools.product(*own.values())
        ]

    def stage_of(self, objective: str, key: str) -> str | None:
        """Where an axis or a key to tune acts: `train`, or `then` if only what follows has it; None for neither."""
        stages = {"train": self.objectives[objective].config, "then": self.objectives[objective].then or {}}
        return next((stage for stage, config in stages.items() if has_key(config, axis_key(key))), None)

    def pretraining(self, cell: Cell) -> str:
        """The folder of a cell's own training, which cells share that differ in what follows it alone."""
        axes = tuple((name, value) for name, value in cell.axes if self.stage_of(cell.objective, name) == "train")
        return replace(cell, axes=axes).name

    def tuned(self, cell: Cell) -> dict[str, list[Any]]:
        """The keys to tune that the training of a cell has, and their values."""
        return {
            name: values for name, values in self.tune.keys.items() if self.stage_of(cell.objective, name) == "train"
        }

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
        if not self.tune.keys:
            content.pop("tune")
        content["budget"] = {name: value for name, value in content["budget"].items() if value is not None}
        return {key: value for key, value in content.items() if value not in ([], {}, None)}


def check(study: Study) -> Study:
    """The study itself, if it can be run.

    Raises:
        InputError: where a number is not positive, shapes are not equal in parameters, an axis has a mapping as a value
            or belongs to no objective, a key is set twice, a margin or deviation is of no number of `MARGINS`, or cells
            share a name.
    """
    counts = {"seeds": len(study.seeds), "threads": study.threads, "workers": study.workers}
    counts["train_samples"] = 1 if study.train_samples is None else study.train_samples
    counts |= {f"evaluation.{name}": n for name, n in vars(study.evaluation).items() if isinstance(n, int)}
    counts |= {f"axes.{name}": len(values) for name, values in study.axes.items()}
    counts |= {f"tune.keys.{name}": len(values) for name, values in study.tune.keys.items()}
    for name, count in counts.items():
        if count < (least := 0 if name == "evaluation.pictures" else 1):
            raise InputError(f"{name} must be at least {least}, got {count}")
    for field_name, sizes in (("margins", study.margins), ("known_sd", study.known_sd)):
        for name, size in sizes.items():
            if name not in MARGINS:
                raise unknown(f"number of {field_name}", name, MARGINS)
            if not 0 < size < math.inf:
                raise InputError(f"{field_name}.{name} must be above 0, got {size}")
    _check_budget(study)
    _check_ladder(study)
    if (lengths := study.evaluation.lengths) and (len(set(lengths)) < 2 or min(lengths) < 1):
        raise InputError(f"evaluation.lengths must be two or more, all positive, got {lengths}")
    if lengths and not any(objective.kind == "causal" for objective in study.objectives.values()):
        raise InputError("evaluation.lengths is for causal language models, and no objective is of kind causal")
    for name, values in study.axes.items():
        if any(isinstance(value, dict) for value in values):
            raise InputError(f"axes.{name}: a value is a mapping of keys; give an axis for each key, as in {name}.KEY")
        if not any(study.stage_of(objective, name) for objective in study.objectives):
            raise InputError(f"axis {name}: no objective configures the key {axis_key(name)}")
    for name in study.tune.keys:
        if not any(study.stage_of(objective, name) == "train" for objective in study.objectives):
            raise InputError(f"tune.keys.{axis_key(name)}: no objective trains by a key of that name")
    for key, times in Counter(map(axis_key, (*study.axes, *study.tune.keys))).items():
        if times > 1:
            raise InputError(f"{key} is set by two axes, or by an axis and by tune: name it once")
    if unusable := [seed for seed in study.seeds if not 0 <= seed < 2**32]:
        raise InputError(f"seeds must lie between 0 and 2^32 - 1, got {unusable[0]}")
    (name, times), *_ = Counter(cell.name for cell in study.cells()).most_common(1)
    if times > 1:
        raise InputError(f"two cells are called {name}: give their shapes a label, or remove what is there twice")
    return study


def _check_budget(study: Study) -> None:
    budget, tune = study.budget, study.tune
    given = [name for name in ("samples", "flops", "seconds") if getattr(budget, name) is not None]
    if len(given) > 1:
        raise InputError(f"budget has one unit, got {' and '.join(given)}")
    if given and not 0 < getattr(budget, given[0]) < math.inf:
        raise InputError(f"budget.{given[0]} must be positive, got {getattr(budget, given[0])}")
    shares = {"budget.then": budget.then, "tune.share": tune.share, "tune.held_out": tune.held_out}
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"{name} must lie between 0 and 1, got {share}")
    if tune.keys and not given:
        raise InputError("tune takes a share of the budget: give one, as in budget: {flops: 1e14}")
    if tune.keys and any(objective.reads_text for objective in study.objectives.values()):
        raise InputError("tune is for images: texts have no part of the training set that could choose")


def _check_ladder(study: Study) -> None:
    """Refuse shapes that are not equal in what `study.equal` says."""
    if study.equal not in EQUAL:
        raise unknown("equal", study.equal, EQUAL)
    tokens = _tokens(study) if study.equal == "flops" else 0
    costs = {label: shape.flops(tokens) if tokens else shape.parameters for label, shape in study.shapes.items()}
    (first, cost), *others = costs.items()
    for label, other in others:
        if abs(off := other / cost - 1) > UNEQUAL and not study.allow_unequal:
            raise InputError(
                f"shape {label} has {off:+.1%} of the {study.equal} of {first} ({other:,} against {cost:,}), and a "
                f"ladder is equal to {UNEQUAL:.0%}: change it, or set allow_unequal"
            )


def _tokens(study: Study) -> int:
    """Tokens of a whole sample, by the first objective, the class token included."""
    objective = next(iter(study.objectives.values()))
    config = resolve(objective.config, complete=False)
    if objective.reads_text:
        return int(config["data"]["init_args"].get("block_length", 128))
    sizes = config["model"]["init_args"]
    return Patches.of(sizes["image_size"], sizes["patch_size"]).count + 1


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
