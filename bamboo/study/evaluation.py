"""What is measured of a trained cell, and written into its folder."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bamboo.analysis.profiles import Profile, compare
from bamboo.files import read_file

from .courses import excess_moved, write_course
from .folders import checkpoint
from .recording import read_record
from .results import MASKED, TRAIN, UNTRAINED, WHOLE
from .spec import Cell, Study

SIMILARITIES = {
    "similarity": WHOLE,
    "similarity_untrained": UNTRAINED,
    "similarity_train": TRAIN,
    "similarity_masked": MASKED,
    "similarity_untrained_masked": "untrained, held-out, masked",
}
"""Names of numbers, and the profile that each is of."""


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
    numbers = {**last_layers(profiles), **numbers, "activation_bytes": activation_bytes}
    if np.isfinite(moved := excess_moved(course)):  # too short a training has too few looks
        numbers["excess_moved"] = moved
    return numbers, cost


def last_layers(profiles: Mapping[str, Profile]) -> dict[str, float]:
    """Similarity and, where they were measured, its excess and effective rank after the last block."""
    numbers = {
        name: _last(profiles[label], "token_similarity") for name, label in SIMILARITIES.items() if label in profiles
    }
    for name, measure in {"excess": "excess_similarity", "effective_rank": "effective_rank"}.items():
        if profiles[WHOLE].has(measure) and np.isfinite(_last(profiles[WHOLE], measure)):  # one sample has no excess
            numbers[name] = _last(profiles[WHOLE], measure)
            numbers[f"{name}_untrained"] = _last(profiles[UNTRAINED], measure)
    return numbers


def _last(profile: Profile, measure: str) -> float:
    return float(profile.curve(measure).mean[-1])
