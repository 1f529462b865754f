"""Values of keys that are chosen for each shape and objective on a part of the training images."""

import itertools
import math
from pathlib import Path
from typing import Any, TextIO

from omegaconf import OmegaConf

from bamboo.errors import Diverged
from bamboo.files import read_file, write_json
from bamboo.workers import reason_of

from .budget import budgeted
from .changes import set_keys
from .folders import tuning_file
from .spec import Cell, Study, axis_key
from .stages import fit, locked, run_config


def choose(study: Study, cell: Cell, out: Path, log: TextIO) -> None:
    """Train every combination of values for a share of the budget, unless that is done, and keep the best.

    Raises:
        Diverged: where none of them ended with a finite loss.
    """
    path = tuning_file(study, cell, out)
    if path is None:
        return
    folder, keys = path.with_suffix(""), study.tuned(cell)
    with locked(folder):
        if path.is_file():
            return
        runs = []
        for number, values in enumerate(itertools.product(*keys.values())):
            combination = dict(zip(map(axis_key, keys), values, strict=True))
            changes = {
                "seed_everything": study.seeds[0],
                "data.init_args.validate_on_train": study.tune.held_out,
                "checkpoint.dirpath": str(folder / str(number)),
            }
            config = set_keys(run_config(study, cell, folder / str(number), "train", combination), changes)
            config = budgeted(study, cell, "train", config, study.tune.share)
            run: dict[str, Any] = {"values": combination, "loss": None, "reason": ""}
            try:
                run["seconds"] = fit(study, config, folder / str(number), log)
                loss = _validation_loss(config, folder / str(number) / "last.ckpt")
                run |= {"loss": loss} if math.isfinite(loss) else {"reason": "the validation loss is not finite"}
            except Diverged as error:  # a rate that is not chosen
                run["reason"] = reason_of(error)
            runs.append(run)
        finite = [run for run in runs if run["loss"] is not None]
        if not finite:
            raise Diverged(f"none of the {len(runs)} combinations to tune could be trained: {runs[0]['reason']}")
        best = min(finite, key=lambda run: run["loss"])
        write_json(path, {"chosen": best["values"], "runs": runs})


def _validation_loss(config: dict[str, Any], checkpoint: Path) -> float:
    from bamboo.fit.lightning import build

    cli = build(OmegaConf.to_yaml(OmegaConf.create(config)))
    cli.model.load_state_dict(read_file(checkpoint)["state_dict"])
    (logged,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    return float(logged["val/loss"])
