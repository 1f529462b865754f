"""What cells will cost, before any of them runs: parameters, FLOPs, memory, and roughly the time."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf

from bamboo.errors import InputError
from bamboo.finetune.building import SCRATCH
from bamboo.fit.lightning import build

from .configs import at, merge
from .results import read_results
from .running import run_config
from .spec import Cell, Study

REACHED = 0.35
"""Share of the speed of a large matrix product that training is taken to reach; narrow models reach less."""

BYTES = 16
"""Per parameter under AdamW in fp32: the weight, its gradient and two moments."""


@dataclass(frozen=True)
class Estimate:
    """What a cell costs.

    Args:
        parameters: of everything that is trained, the decoder or head included.
        flops: of its whole training, forward and backward, what follows included.
        memory: bytes of weights, gradients and moments; activations come on top and grow with the batch.
        seconds: of its training, from the speed of matrix products or, where cells of this kind are finished, theirs.
        measured: whether the time is that of finished cells.
    """

    parameters: int
    flops: float
    memory: float
    seconds: float
    measured: bool = False


def estimates(study: Study, cells: Sequence[Cell], out: Path) -> dict[str, Estimate]:
    """The cost of cells, by their names. Seeds do not matter, so each kind of cell is looked at once.

    Raises:
        InputError: where a configuration or its data cannot be used: so bad input shows before anything runs.
    """
    speed = matmul_flops(study.threads)
    finished = read_results(study, out).done
    kinds: dict[Any, Estimate] = {}
    for cell in cells:
        if (kind := _kind(cell)) not in kinds:
            costs = [one.cost for one in finished if _kind(one.cell) == kind]
            kinds[kind] = _measured(_estimate(study, cell, speed), costs)
    return {cell.name: kinds[_kind(cell)] for cell in cells}


def _kind(cell: Cell) -> Any:
    return cell.label, cell.objective, cell.axes


def _measured(estimate: Estimate, costs: list[dict[str, float]]) -> Estimate:
    if not costs:
        return estimate
    spent = median(sum(value for name, value in cost.items() if name.startswith("seconds_")) for cost in costs)
    return replace(estimate, seconds=spent, measured=True)


def _estimate(study: Study, cell: Cell, speed: float) -> Estimate:
    objective, parameters, flops = study.objectives[cell.objective], 0, 0.0
    for stage in ("train", "then") if objective.then else ("train",):
        config = run_config(study, cell, Path(cell.name), stage)
        where = f"objective {cell.objective}" + (", then" if stage == "then" else "")
        module, data = parse(config, where)
        parameters = max(parameters, sum(p.numel() for p in module.parameters()))
        per_sample = 3 * cell.shape.flops(_length(data)) if objective.reads_text else module.flops_per_sample()
        batch = module.recipe.effective_batch
        flops += per_sample * _samples(data, config["trainer"], study.train_samples, batch)
    return Estimate(parameters, flops, BYTES * parameters, flops / speed / REACHED)


def _length(data: Any) -> int:
    return int(data.block_length if hasattr(data, "block_length") else data.length)


def parse(config: dict[str, Any], where: str) -> tuple[Any, Any]:
    """The module and the data of a resolved configuration; nothing runs.

    Raises:
        InputError: names the objective and what is wrong.
    """
    if config["model"]["init_args"].get("encoder"):
        config = merge(config, at("model.init_args.encoder", SCRATCH))
    plain = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
    config = merge(config, {"trainer": {**plain, "logger": False, "callbacks": [], "plugins": []}})
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # it says which one it sets
    try:
        cli = build(OmegaConf.to_yaml(OmegaConf.create(config)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return cli.model, cli.datamodule


def _samples(data: Any, trainer: dict[str, Any], known: int | None, effective_batch: int = 0) -> float:
    """Samples that a training sees: of its steps if their number is given, else of its epochs."""
    steps, accumulated = trainer.get("max_steps", -1), trainer.get("accumulate_grad_batches", 1)
    if steps is not None and steps > 0:
        return float(steps * (effective_batch or accumulated * data.batch_size))
    try:
        data.setup("fit")
        count = len(data.train_dataloader()) * data.batch_size
    except InputError:
        if known is None:
            raise
        count = known
    return float(count * (trainer.get("max_epochs") or math.nan))


def matmul_flops(threads: int, size: int = 1024) -> float:
    """FLOPs per second of a matrix product on what cells will run on, in the precision that suits it.

    On a CPU its own time is counted, not that of the clock, so that what else runs there does not matter.
    """
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    size = 8 * size if cuda else size
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    matrix = torch.ones(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if cuda else torch.float32)
    spent = []
    for _ in range(4):
        since = clock()
        _ = (matrix @ matrix).sum().item()
        spent.append((clock() - since) / (1 if cuda else threads))
    torch.set_num_threads(before)
    return 2 * size**3 / min(spent)
