"""What cells will cost, before any of them runs: parameters, FLOPs, memory, and roughly the time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.benchmark import Timer

from bamboo.errors import InputError

from .budget import flops_per_sample, parse, step_size
from .results import read_results
from .spec import Cell, Study
from .stages import run_config

REACHED = 0.35
"""Share of the speed of a large matrix product that training is taken to reach; narrow models reach less."""
BYTES = 16
"""Per parameter under AdamW in fp32: the weight, its gradient and two moments."""
NOTE = """\
Parameters are all that are trained, with decoder or head; FLOPs those of all training, forward and backward, without
tuning; cells that share their pretraining have it each. Memory is that of weights, gradients and moments; the
activations of a step come on top. Times with a ? are guessed from the speed of a matrix product on this machine,
without evaluation; others are those of finished cells."""


@dataclass(frozen=True)
class Estimate:
    """What a cell costs, see `NOTE`; `memory` is in bytes, and the time is `measured` where it is of finished cells."""

    parameters: int
    flops: float
    memory: float
    seconds: float
    measured: bool


def estimates(study: Study, cells: Sequence[Cell], out: Path) -> dict[str, Estimate]:
    """The cost of cells, by their names. Seeds do not matter, so each kind of cell is looked at once.

    Raises:
        InputError: where a configuration or its data cannot be used: so bad input shows before anything runs.
    """
    speed, done = matmul_flops(study.threads), read_results(study, out).done
    kinds: dict[Any, Estimate] = {}
    sizes: dict[str, int] = {}
    for cell in cells:
        if (kind := _kind(cell)) not in kinds:
            measured = [outcome.seconds for outcome in done if _kind(outcome.cell) == kind]
            parameters, flops = _count(study, cell, sizes)
            seconds = median(measured) if measured else study.budget.seconds or flops / speed / REACHED
            kinds[kind] = Estimate(parameters, flops, BYTES * parameters, seconds, bool(measured))
    return {cell.name: kinds[_kind(cell)] for cell in cells}


def _kind(cell: Cell) -> Any:
    return cell.label, cell.objective, cell.axes


def _count(study: Study, cell: Cell, sizes: dict[str, int]) -> tuple[int, float]:
    """Parameters of the largest stage and FLOPs of all; `sizes` keeps the samples of an epoch by their data."""
    objective, parameters, flops = study.objectives[cell.objective], 0, 0.0
    for stage in ("train", "then") if objective.then else ("train",):
        config = run_config(study, cell, Path(cell.name), stage)
        cli = parse(config, f"objective {cell.objective}" + (", then" if stage == "then" else ""))
        module, data, trainer = cli.model, cli.datamodule, config["trainer"]
        if study.evaluation.lengths and objective.kind == "causal":
            from .lengths import check_stream

            check_stream(data.text.val, study.evaluation.lengths)
        parameters = max(parameters, sum(p.numel() for p in module.parameters()))
        per_sample, steps = flops_per_sample(module, data), trainer.get("max_steps") or -1
        if steps > 0:
            flops += per_sample * steps * step_size(config, module, data)
        else:
            if (key := str(config["data"])) not in sizes:
                sizes[key] = _epoch(data, study.train_samples)
            epochs = trainer.get("max_epochs") or -1
            flops += per_sample * sizes[key] * (epochs if epochs > 0 else math.nan)  # as far as the seconds reach
    return parameters, flops


def _epoch(data: Any, known: int | None) -> int:
    """Samples of an epoch; if the data are not at hand, what is known of them."""
    try:
        data.setup("fit")
        return len(data.train_dataloader()) * int(data.batch_size)
    except InputError:
        if known is None:
            raise
        return known


def matmul_flops(threads: int) -> float:
    """FLOPs per second of a matrix product on what cells will run on, in the precision that suits it."""
    size, device, kind = (8192, "cuda", torch.bfloat16) if torch.cuda.is_available() else (1024, "cpu", torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=kind)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=threads)
    return 2 * size**3 / min(timer.timeit(1).mean for _ in range(4))
