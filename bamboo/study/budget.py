"""How long the stages of a cell train, so that all cells of a study spend the same."""

import logging
import warnings
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf

from bamboo.errors import InputError
from bamboo.finetune.building import SCRATCH
from bamboo.fit.lightning import BambooCLI, build

from .changes import set_keys
from .spec import Cell, Study

HARDWARE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true"}


def parse(config: dict[str, Any], where: str) -> BambooCLI:
    """Module and data of a resolved configuration, on the CPU, from fresh weights; nothing runs.

    Raises:
        InputError: names `where` the configuration belongs and what is wrong with it.
    """
    changes: dict[str, Any] = {"trainer": {**HARDWARE, "logger": False, "callbacks": [], "plugins": []}}
    if config["model"]["init_args"].get("encoder"):
        changes["model.init_args.encoder"] = SCRATCH
    if config["trainer"].get("max_epochs") == -1:  # a budget gives the length, which changes nothing here
        changes["trainer"] |= {"max_steps": 1, "max_time": None}
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)  # it says which one it sets
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GPU available but not used")
        try:
            return _build(OmegaConf.to_yaml(OmegaConf.create(set_keys(config, changes))))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


@lru_cache(maxsize=1)  # a stage is asked for its length first, and then for what it costs or sets
def _build(text: str) -> BambooCLI:
    return build(text)


def step_size(config: dict[str, Any], module: Any, data: Any) -> int:
    """Samples of one optimizer step of a configuration; of one process where no effective batch is configured."""
    accumulated = config["trainer"].get("accumulate_grad_batches") or 1
    return int(module.recipe.effective_batch or accumulated * data.batch_size)


def flops_per_sample(module: Any, data: Any) -> float:
    """Training FLOPs of one sample, forward and backward."""
    return float(module.flops_per_sample(data.length) if hasattr(data, "length") else module.flops_per_sample())


def budgeted(study: Study, cell: Cell, stage: str, config: dict[str, Any], share: float = 1.0) -> dict[str, Any]:
    """A resolved configuration of a stage of a cell, as long as a share of what the budget gives to that stage."""
    budget, objective = study.budget, study.objectives[cell.objective]
    if budget.unit is None:
        return config
    share *= budget.share(stage, objective.then is not None)
    if budget.seconds is not None:
        minutes, seconds = divmod(max(1, round(share * budget.seconds)), 60)
        days, hours = divmod(minutes // 60, 24)
        length = {"max_time": f"{days:02}:{hours:02}:{minutes % 60:02}:{seconds:02}", "max_steps": -1}
    else:
        cli = parse(set_keys(config, {"trainer.max_epochs": -1}), f"objective {cell.objective}")
        samples = budget.samples or (budget.flops or 0.0) / flops_per_sample(cli.model, cli.datamodule)
        steps = round(share * samples / step_size(config, cli.model, cli.datamodule))
        length = {"max_steps": max(1, steps), "max_time": None}
    return set_keys(config, {"trainer.max_epochs": -1, **{f"trainer.{name}": value for name, value in length.items()}})
