"""A study of seconds, and ways to run it."""

import csv
from pathlib import Path
from typing import Any

import yaml

from bamboo.study.folders import store, waiting
from bamboo.study.reading import read_study
from bamboo.study.running import run_locked
from bamboo.study.spec import Study
from tests.runs import CONFIGS

SHAPES = [{"depth": 2, "width": 64, "heads": 2}, {"depth": 8, "width": 32, "heads": 1}]
DECODER = {"depth": 1, "width": 32, "heads": 1}
SHORT = {"warmup_share": 0.5}
SMALL = {"init_args": {"image_size": 16, "recipe": SHORT}}
SUPERVISED = {
    "kind": "supervised",
    "config": str(CONFIGS / "finetune/scratch_digits.yaml"),
    "set": {
        "model": {"init_args": {"image_size": 16, "pool": "token", "recipe": SHORT}},
        "data": {"init_args": {"batch_size": 32}},
        "trainer": {"max_epochs": 1, "max_steps": 4},
        "checkpoint": {"every_n_train_steps": 1},
    },
}
MAE = {
    "kind": "masked",
    "config": str(CONFIGS / "pretrain/quickstart.yaml"),
    "set": {
        "model": {"init_args": {"image_size": 16, "decoder_shape": DECODER, "recipe": SHORT}},
        "data": {"init_args": {"batch_size": 32}},
        "trainer": {"max_epochs": 1, "max_steps": 4},
        "checkpoint": {"every_n_train_steps": 1},
    },
    "then": {
        "config": str(CONFIGS / "finetune/digits.yaml"),
        "set": {"model": SMALL, "trainer": {"max_epochs": 1, "max_steps": 2}},
    },
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "shapes": SHAPES,
    "seeds": 1,
    "differs": ["model.init_args", "data.init_args", "trainer"],
    "objectives": {"mae": MAE, "supervised": SUPERVISED},
    "evaluation": {
        "samples": 8,
        "point_samples": 4,
        "points": 5,
        "probe_samples": 60,
        "probe_epochs": 1,
        "pictures": 1,
    },
}


def written(folder: Path, **changes: Any) -> Path:
    """The file of a tiny study."""
    path = folder / "study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def tiny(folder: Path, **changes: Any) -> Study:
    """A tiny study."""
    return read_study(written(folder, **changes))


def run_here(study: Study, out: Path) -> Path:
    """Run what is left of a study in this process, which costs no imports."""
    store(study, out)
    for cell in waiting(study, out):
        run_locked(study, cell, out)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
