"""One run of a sweep: a task fine-tuned under a seed, from the encoder to a file of its scores."""

import json
import logging
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from bamboo import files
from bamboo.callbacks import NonFiniteGuard
from bamboo.errors import InputError
from bamboo.finetune.predictions import in_order
from bamboo.text.checkpoints import save_text
from bamboo.workers import Report

from .classifier import GlueClassifier, measure
from .data import GlueData
from .encoders import quiet
from .metrics import headline
from .recipes import CLIP, Setting

FROM_MNLI = ("mrpc", "stsb", "rte")
"""The tasks that may start from a model fine-tuned on MNLI, as in Liu et al. 2019."""


@dataclass(frozen=True)
class Plan:
    """What all runs of a sweep have in common: the options of these names of `bamboo glue`."""

    encoder: str
    data: str
    max_length: int = 128
    dropout: float = 0.1
    layer_decay: float = 1.0
    precision: Literal["auto", "32", "bf16"] = "auto"
    samples: int | None = None
    from_mnli: bool = False
    keep_models: bool = False


@dataclass(frozen=True)
class Run:
    """One training of a sweep, and the files that it leaves in the folder of the sweep.

    Args:
        task: name of the task.
        seed: of the head, of dropout and of the order.
        setting: hyperparameters.
        searched: whether this is one of several settings for the same task and seed.
    """

    task: str
    seed: int
    setting: Setting = Setting()  # noqa: RUF009 (frozen)
    searched: bool = False

    @property
    def name(self) -> str:
        """What its files are called."""
        setting = self.setting
        suffix = f"-batch{setting.batch_size}-lr{setting.lr:g}-epochs{setting.epochs}" if self.searched else ""
        return f"{self.task}-seed{self.seed}{suffix}"

    def path(self, out: Path) -> Path:
        """Its scores, which are there once it is finished."""
        return out / "cells" / f"{self.name}.json"

    def predictions(self, out: Path) -> Path:
        """What it predicts of the test splits."""
        return out / "predictions" / f"{self.name}.json"

    def model(self, out: Path) -> Path:
        """Folder of its model, if it is kept."""
        return out / "models" / self.name

    def finished(self, out: Path) -> bool:
        """Whether there is nothing left to do."""
        return self.path(out).is_file()

    def read(self, out: Path) -> dict[str, Any]:
        """Its scores."""
        return dict(files.read_json(self.path(out)))


def fine_tune(plan: Plan, run: Run, out: Path, report: Report | None = None) -> dict[str, Any]:
    """Fine-tune, evaluate the model of the end of training, and write its scores below `out`.

    Args:
        plan: what all runs have in common.
        run: which one this is.
        out: folder of the sweep.
        report: is told after every step how many texts it was trained on.

    Returns:
        What was written: the setting, metrics by split, their summary, and the seconds that it took.
    """
    start = time.perf_counter()
    from_mnli = plan.from_mnli and run.task in FROM_MNLI
    module = GlueClassifier(
        Run("mnli", run.seed).model(out) if from_mnli else plan.encoder,
        run.task,
        dropout=plan.dropout,
        layer_decay=plan.layer_decay,
        recipe=run.setting.recipe,
        seed=run.seed,
    )
    data, trainer = _data(plan, run), _trainer(plan, run.setting.epochs, report)
    with warnings.catch_warnings(action="ignore"):  # advice on workers and logging intervals
        trainer.fit(module, datamodule=data)
        module.check_converged()
        trainer.validate(module, datamodule=data, verbose=False)
    metrics = measure(module.task, module.predictions)
    scores = {
        "task": run.task,
        "seed": run.seed,
        "setting": asdict(run.setting),
        "score": headline(module.task, metrics),
        "metrics": metrics,
        "seconds": time.perf_counter() - start,
    }
    if plan.keep_models or (plan.from_mnli and run.task == "mnli"):
        with quiet():
            save_text(module.model, module.tokenizer, run.model(out))
    write_json(run.path(out), scores)
    return scores


def predict_tests(plan: Plan, run: Run, out: Path) -> dict[str, Any]:
    """Ids and predictions by test split of a run whose model was kept; they are written, and read the next time.

    Raises:
        InputError: where the model was not kept.
    """
    path = run.predictions(out)
    if path.is_file():
        return dict(files.read_json(path))
    if not (run.model(out) / "model.safetensors").is_file():
        raise InputError(
            f"{run.name} was run without --keep-models or --submission, so its test set cannot be predicted: remove "
            f"{run.path(out)} to train it again"
        )
    module, data = GlueClassifier(run.model(out), run.task, dropout=None), _data(plan, run)
    with warnings.catch_warnings(action="ignore"):
        parts: Any = _trainer(plan, 1).predict(module, datamodule=data)
    parts = parts if len(data.test_names) > 1 else [parts]
    predictions = {
        split: {"ids": ids, "predictions": in_order(part)["predicted"].tolist()}
        for split, ids, part in zip(data.test_names, data.predict_source(), parts, strict=True)
    }
    write_json(path, predictions)
    return predictions


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; what is not a number becomes null."""
    files.write_json(path, json.loads(json.dumps(content), parse_constant=lambda _: None))


def _data(plan: Plan, run: Run) -> GlueData:
    return GlueData(plan.data, run.task, run.setting.batch_size, plan.max_length, samples=plan.samples, seed=run.seed)


def _trainer(plan: Plan, epochs: int, report: Report | None = None) -> Trainer:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # devices, tips for products
    on_gpu = torch.cuda.is_available()

    def count(trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if report:
            report(len(batch["index"]))

    half = plan.precision == "bf16" or (
        plan.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if half else "32-true",
        max_epochs=epochs,
        gradient_clip_val=CLIP,
        limit_val_batches=1.0,
        check_val_every_n_epoch=epochs + 1,  # once, at the end
        num_sanity_val_steps=0,
        callbacks=[NonFiniteGuard(), LambdaCallback(on_train_batch_end=count)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
