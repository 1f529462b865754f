"""`make bench`: ratios of speed against named peers, as one table and as `runs/bench.json`. A report, not a test."""

import argparse
import importlib
import importlib.util
import json
import math
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bamboo.files import atomic_write

PARTS = ("training", "data", "analysis", "finetune")


class Line(NamedTuple):
    """One line of the table: what it says, and the keys of the result that hold its numbers.

    `target` is the least that `ratio` should be, or with `at_most` the most.
    """

    name: str
    ratio: str
    ours: str = ""
    peer: str = ""
    target: float | None = None
    at_most: bool = False


def training_lines() -> Iterator[Line]:
    """A step against that of transformers' ViTMAE, in seconds, and the share of the peak it reaches."""
    targets = {"mae fp32": 1.1, "mae bf16": 1.0, "half fp32": 1.5, "half bf16": 1.5, "cross fp32": 2.0, "cross bf16": 2.0}
    said = {"mae": "exact MAE", "half": "predict_ratio 0.5", "cross": "cross, predict_ratio 0.25"}
    for shape, variants in (("vit-small", said), ("vit-base", ["mae"]), ("bamboo-base", ["mae"])):
        for precision in ("fp32", "bf16"):
            key = f"{shape}_{precision}"
            for v in variants:
                name, target = f"step, {shape}, {precision}, {said[v]} (s)", targets[f"{v} {precision}"]
                yield Line(name, f"{key}_{v}_ratio", f"{key}_{v}_seconds", f"{key}_peer_seconds", target)
            yield Line(f"share of matmul peak, {shape}, {precision}", f"{key}_share_of_peak")


LINES = {
    "training": [*training_lines()],
    "data": [
        Line("images/s, PIL recipe", "bamboo_over_pil", "bamboo_images_per_s", "pil_images_per_s", 1.8),
        Line("images/s, repeat 2", "bamboo_repeat2_over_pil", "bamboo_repeat2_images_per_s", "pil_images_per_s", 2.5),
    ],
}
