"""One cell of a sweep: a task fine-tuned under a seed, from the encoder to a file of its scores."""

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from bamboo.callbacks import NonFiniteGuard
from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.text.checkpoints import save_text

from .classifier import GlueClassifier, in_order, measure
from .data import GlueData
from .encoders import quiet
from .metrics import headline
from .recipes import CLIP, Setting

Precision = Literal["auto", "32", "bf16"]
Report = Callable[[int], None]
"""Is told how many texts were trained on since the last time."""

FROM_MNLI = ("mrpc", "stsb", "rte")
"""The tasks that may start from a model fine-tuned on MNLI, as in Liu et al. 2019."""


@dataclass(frozen=True)
class Plan:
    """What all cells of a sweep have in common.

    Args:
        encoder: see `bamboo.finetune.glue.encoders.open_encoder`.
        data: see `bamboo.finetune.glue.reading.read_split`.
        max_length: tokens of a text or pair at most.
        dropout: see `GlueClassifier`.
        layer_decay: see `GlueClassifier`.
        precision: fp32, or bf16 autocast; `auto` is bf16 on a GPU that has it.
        samples: texts to train and evaluate on at most; None for all.
        from_mnli: start `FROM_MNLI` from the model that was fine-tuned on MNLI under the same seed.
        keep_models: write the model of each cell as a Hugging Face folder.
    """

    encoder: str
    data: str
    max_length: int = 128
    dropout: float = 0.1
    layer_decay: float = 1.0
    precision: Precision = "auto"
    samples: int | None = None
    from_mnli: bool = False
    keep_models: bool = False


@dataclass(frozen=True)
class Cell:
    """One training of a sweep.

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
        content: dict[str, Any] = json.loads(self.path(out).read_text(encoding="utf-8"))
        return content


def run_cell(plan: Plan, cell: Cell, out: Path, gpu: int | None = None, report: Report | None = None) -> dict[str, Any]:
    """Fine-tune, evaluate the model of the end of training, and write its scores.

    Args:
        plan: what all cells have in common.
        cell: which one this is.
        out: folder of the sweep.
        gpu: number of the GPU to train on; None for the CPU.
        report: is told of every step.

    Returns:
        What was written: the setting, metrics by split, their summary, and the seconds that it took.
    """
    start = time.perf_counter()
    begin = Cell("mnli", cell.seed).model(out) / "model.safetensors"
    module = GlueClassifier(
        plan.encoder,
        cell.task,
        dropout=plan.dropout,
        layer_decay=plan.layer_decay,
        recipe=cell.setting.recipe,
        seed=cell.seed,
        start_from=begin if plan.from_mnli and cell.task in FROM_MNLI else None,
    )
    data, trainer = _data(plan, cell), _trainer(plan, cell.setting.epochs, gpu, report)
    with _without_advice():
        trainer.fit(module, datamodule=data)
        module.check_converged()
        trainer.validate(module, datamodule=data, verbose=False)
    metrics = measure(module.task, module.predictions)
    scores = {
        "task": cell.task,
        "seed": cell.seed,
        "setting": {"lr": cell.setting.lr, "batch_size": cell.setting.batch_size, "epochs": cell.setting.epochs},
        "score": headline(module.task, metrics),
        "metrics": metrics,
        "seconds": time.perf_counter() - start,
    }
    if plan.keep_models or (plan.from_mnli and cell.task == "mnli"):
        with quiet():
            save_text(module.model, module.tokenizer, cell.model(out))
    write_json(cell.path(out), scores)
    return scores


def predict_tests(plan: Plan, cell: Cell, out: Path, gpu: int | None = None) -> dict[str, Any]:
    """Ids and predictions by test split of a cell whose model was kept; they are written, and read the next time.

    Raises:
        InputError: where the model was not kept.
    """
    path = cell.predictions(out)
    if path.is_file():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    if not (cell.model(out) / "model.safetensors").is_file():
        raise InputError(
            f"{cell.name} was run without --keep-models or --submission, so its test set cannot be predicted: remove "
            f"{cell.path(out)} to train it again"
        )
    module, data = GlueClassifier(cell.model(out), cell.task, dropout=None), _data(plan, cell)
    with _without_advice():
        parts: Any = _trainer(plan, 1, gpu, None).predict(module, datamodule=data)
    parts = parts if len(data.test_names) > 1 else [parts]
    found = {
        split: {"ids": ids, "predictions": in_order(part)["predicted"].tolist()}
        for split, ids, part in zip(data.test_names, data.predict_source(), parts, strict=True)
    }
    write_json(path, found)
    return found


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; what is not a number becomes null."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_strict(content), indent=1) + "\n", encoding="utf-8")


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _data(plan: Plan, cell: Cell) -> GlueData:
    batch = cell.setting.batch_size
    return GlueData(plan.data, cell.task, batch, plan.max_length, samples=plan.samples, seed=cell.seed)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without Lightning's advice on workers and logging intervals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _trainer(plan: Plan, epochs: int, gpu: int | None, report: Report | None) -> Trainer:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # devices, tips for products
    half = plan.precision == "bf16" or (
        plan.precision == "auto" and gpu is not None and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return Trainer(
        accelerator="cpu" if gpu is None else "gpu",
        devices=1 if gpu is None else [gpu],
        precision="bf16-mixed" if half else "32-true",
        max_epochs=epochs,
        gradient_clip_val=CLIP,
        limit_val_batches=1.0,
        check_val_every_n_epoch=epochs + 1,  # once, at the end
        num_sanity_val_steps=0,
        callbacks=[NonFiniteGuard(), *([_Reporting(report)] if report else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Reporting(Callback):
    """Says how many texts a step has seen."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every step."""
        self.report(len(batch["index"]))
