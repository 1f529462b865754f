"""Fine-tuning of a text encoder on one task of GLUE: the thin Lightning module around a model of transformers."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from bamboo.errors import InputError
from bamboo.seeds import derive_seed
from bamboo.training import Recipe, TrainingModule

from .encoders import load_start, open_encoder
from .layer_decay import layer_groups
from .metrics import compute, headline
from .recipes import Setting
from .tasks import Task, find_tasks


class Predictions(NamedTuple):
    """What a model says of the texts of a split, in the order of the split.

    Args:
        values: number of the most probable class (n,), or the score.
        labels: what is true (n,); empty where it is not known.
    """

    values: list[Any]
    labels: list[Any]


class GlueClassifier(TrainingModule):
    """An encoder with a head, trained whole: cross-entropy for classes, the squared error for scores.

    Every draw of a step (dropout) is a pure function of the seed, the epoch, the step and the process.

    Args:
        encoder: a checkpoint of this project, a Hugging Face folder, or `hf:NAME`.
        task: name of the task, which decides the size of the head, the loss and the metrics.
        dropout: every dropout probability that the encoder has; null leaves them as they were in pretraining.
        layer_decay: learning rate of a layer over that of the layer above, in a network of `layer_decay_depth` blocks.
        layer_decay_depth: number of blocks that `layer_decay` is written for; at another depth the layer at the same
            relative depth has the same rate, see `layer_groups`.
        recipe: learning rate, schedule and optimizer.
        seed: of new weights and of dropout.
        start_from: a model that was fine-tuned on another task, MNLI as a rule, from which all but a head of another
            size is taken.

    Raises:
        InputError: where the encoder cannot be loaded, or there is no such task.
    """

    def __init__(
        self,
        encoder: str | Path | None = None,
        task: str = "cola",
        dropout: float | None = 0.1,
        layer_decay: float = 1.0,
        layer_decay_depth: int = 12,
        recipe: Recipe = Setting().recipe,  # noqa: B008 (frozen)
        seed: int = 0,
        start_from: str | Path | None = None,
    ) -> None:
        super().__init__(Recipe(**recipe) if isinstance(recipe, Mapping) else recipe)
        if encoder is None:
            raise InputError("there is no encoder to fine-tune: give --model.init_args.encoder CHECKPOINT or hf:NAME")
        (self.task,) = find_tasks([task])
        labels = self.task.num_outputs
        self.model, self.tokenizer, self.notes = open_encoder(encoder, labels, dropout, derive_seed(seed, "head"))
        if start_from is not None:
            load_start(self.model, start_from)
        self.layer_decay, self.layer_decay_depth, self.seed = layer_decay, layer_decay_depth, seed
        layer_groups(self.model, layer_decay, 0.0, layer_decay_depth)  # a wrong value shows before anything starts
        self.save_hyperparameters(
            {
                "encoder": str(encoder),
                "task": task,
                "dropout": dropout,
                "layer_decay": layer_decay,
                "layer_decay_depth": layer_decay_depth,
                "recipe": asdict(self.recipe),
                "seed": seed,
            }
        )
        self.train()  # a loaded encoder is in evaluation mode, without dropout
        self.predictions: dict[str, Predictions] = {}
        self._parts: dict[int, list[tuple[Tensor, ...]]] = {}

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, labels) in fp32 of a batch of tokens, see `bamboo.finetune.glue.batches.Batches`."""
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
        logits: Tensor = self.model(**{name: batch[name] for name in names}).logits
        return logits.float()

    def compute(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and the share of its tokens that are padding."""
        logits, labels = self(batch), batch["label"]
        padding = 1 - batch["attention_mask"].float().mean()
        if self.task.is_regression:
            return F.mse_loss(logits[:, 0], labels.float()), {"padding": padding}
        return F.cross_entropy(logits, labels), {"padding": padding}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate and start the random stream anew, so that a resumed run draws what it would have."""
        super().on_train_batch_start(batch, batch_idx)
        self.seed_step(batch_idx)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, by layer, and by whether there is weight decay."""
        return layer_groups(self.model, self.layer_decay, self.recipe.weight_decay, self.layer_decay_depth)

    def on_validation_epoch_start(self) -> None:
        """Start anew."""
        self._parts = {}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep what the model says of each text."""
        self._parts.setdefault(dataloader_idx, []).append(self.predict_step(batch, batch_idx))

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, ...]:
        """Numbers of the texts, what the model says of each, and the labels where they are known, (B,) each."""
        index, labels = batch["index"], batch.get("label", batch["index"][:0])
        if not len(index):  # fewer texts than processes
            return tuple(torch.empty(0) for _ in range(3))
        logits = self(batch)
        values = logits[:, 0] if self.task.is_regression else logits.argmax(dim=1)
        return index.cpu(), values.cpu(), labels.cpu()

    def on_validation_epoch_end(self) -> None:
        """Gather from all processes, put back into order, and measure: `val/METRIC`, and `val/score`, its summary."""
        names = self.trainer.datamodule.eval_names  # type: ignore[attr-defined]
        self.predictions = {split: in_order(self._parts.get(number, [])) for number, split in enumerate(names)}
        self._parts = {}
        metrics = measure(self.task, self.predictions)
        for split, values in metrics.items():
            suffix = split.removeprefix("dev")  # `_matched` and `_mismatched` for MNLI
            self.log_dict({f"val/{name}{suffix}": value for name, value in values.items()})
        self.log("val/score", headline(self.task, metrics), prog_bar=True)

    def setup(self, stage: str) -> None:
        """Check the model against the data."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and data.task != self.task:
            raise InputError(
                f"the model is for {self.task.name} and the data are {data.task.name}: "
                "set model.init_args.task and data.init_args.task alike"
            )


def in_order(parts: list[tuple[Tensor, ...]]) -> Predictions:
    """What all processes say of a split, in the order of the split."""
    columns = [torch.cat(column).tolist() for column in zip(*parts, strict=True)] or [[], [], []]
    if distributed.is_available() and distributed.is_initialized():
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, columns)
        columns = [[value for one in gathered for value in one[column]] for column in range(3)]
    order = sorted(range(len(columns[0])), key=columns[0].__getitem__)
    return Predictions(*([column[i] for i in order] if column else [] for column in columns[1:]))


def measure(task: Task, predictions: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
    """The metrics of every split of a task."""
    return {split: compute(task, found.values, found.labels) for split, found in predictions.items()}
