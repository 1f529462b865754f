"""What is measured of a trained cell, and written into its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from omegaconf import OmegaConf

from bamboo.analysis.profiles import Profile, compare
from bamboo.files import read_file

from .budget import flops_per_sample, parse
from .courses import excess_moved, write_course
from .folders import checkpoint
from .recording import read_record
from .results import FINETUNED, UNTRAINED, VISIBLE, VISIBLE_UNTRAINED, WHOLE
from .spec import Cell, Study


class Measured(NamedTuple):
    """Where in the profiles of a cell a number is; `layer` counts from the last one, -1."""

    label: str
    measure: str
    position: str = "stream"
    layer: int = -1


EXCESS = "excess_similarity"
MEASURED = {
    "similarity": Measured(WHOLE, "token_similarity"),
    "similarity_untrained": Measured(UNTRAINED, "token_similarity"),
    "excess": Measured(WHOLE, EXCESS),
    "excess_untrained": Measured(UNTRAINED, EXCESS),
    "excess_before_last": Measured(WHOLE, EXCESS, layer=-2),
    "excess_normed": Measured(WHOLE, EXCESS, "norm"),
    "excess_visible": Measured(VISIBLE, EXCESS),
    "excess_visible_untrained": Measured(VISIBLE_UNTRAINED, EXCESS),
    "excess_finetuned": Measured(FINETUNED, EXCESS),
    "effective_rank": Measured(WHOLE, "effective_rank"),
    "effective_rank_untrained": Measured(UNTRAINED, "effective_rank"),
}
"""Names of numbers that profiles hold. A cell has those that were measured of it."""


def evaluate(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers and costs of a cell; profiles, the course of training and pictures go into files of its folder."""
    if study.objectives[cell.objective].reads_text:
        from .text import measure
    else:
        from .vision import measure
    profiles, numbers = measure(study, cell, folder)
    compare(profiles).save(folder / "profile")
    course, activation_bytes, cost = read_record(read_file(checkpoint(folder, "train")))
    write_course(course, folder / "training.json")
    numbers = {**of_profiles(profiles), **numbers, "activation_bytes": activation_bytes}
    if np.isfinite(moved := excess_moved(course)):  # too short a training has too few looks
        numbers["excess_moved"] = moved
    stages = ("train", "then")[: 1 + bool(study.objectives[cell.objective].then)]
    return numbers, cost | {f"flops_{stage}": stage_flops(folder, stage) for stage in stages}


def stage_flops(folder: Path, stage: str) -> float:
    """FLOPs of a finished stage of a cell, forward and backward, by the optimizer steps that it took."""
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / f"{stage}.yaml")))
    cli, trained = parse(config, stage), read_file(checkpoint(folder, stage))
    samples = trained["global_step"] * trained["batch"]["effective_batch"]
    return float(samples * flops_per_sample(cli.model, cli.datamodule))


def of_profiles(profiles: Mapping[str, Profile]) -> dict[str, float]:
    """The numbers of `MEASURED` that the profiles of a cell hold."""
    numbers = {}
    for name, (label, measure, position, layer) in MEASURED.items():
        if label in profiles and profiles[label].has(measure, position):
            number = float(profiles[label].curve(measure, position).mean[layer])
            if measure == "token_similarity" or np.isfinite(number):  # one sample alone has no excess
                numbers[name] = number
    return numbers
