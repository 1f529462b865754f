"""Fine-tuning of a text encoder on one task of GLUE: the thin Lightning module around a model of transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from bamboo.errors import InputError
from bamboo.finetune.predictions import in_order
from bamboo.recipes import Recipe
from bamboo.seeds import derive_seed
from bamboo.text.attention import attach_positions
from bamboo.text.checkpoints import restore_tokenizer, tokenizer_state
from bamboo.training import TrainingModule, plain_arguments

from .encoders import head_classes, open_encoder
from .layer_decay import layer_groups
from .metrics import compute, headline
from .recipes import Setting
from .tasks import OWN, Task, find_tasks, own_task, plain

DIVERGED = 2.0
"""How many times the loss of its first step that of the last epoch of a run may be."""


class GlueClassifier(TrainingModule):
    """An encoder with a head, trained whole: cross-entropy for classes, the squared error for scores.

    Every draw of a step (dropout) is a pure function of the seed, the epoch, the step and the process.

    Args:
        encoder: a checkpoint of this project, a Hugging Face folder, or `hf:NAME`. Of a fine-tuned classifier the head
            is kept where its classes have the same names.
        task: name of the task, which decides the size of the head, the loss and the metrics; `texts` for one's own.
        classes: names of the classes of one's own texts; by default those of a fine-tuned `encoder`.
        dropout: every dropout probability that the encoder has; null leaves them as they were in pretraining.
        layer_decay: learning rate of a layer over that of the layer above, in a network of `layer_decay_depth` blocks.
        layer_decay_depth: number of blocks that `layer_decay` is written for; at another depth the layer at the same
            relative depth has the same rate, see `layer_groups`.
        recipe: learning rate, schedule and optimizer.
        seed: of new weights and of dropout.
        model_config: configuration of transformers of the model in a checkpoint of this class, which is read without
            an encoder.

    Raises:
        InputError: where the encoder cannot be loaded, or there is no such task.
    """

    def __init__(
        self,
        encoder: str | Path | None = None,
        task: str = "cola",
        classes: list[str] | None = None,
        dropout: float | None = 0.1,
        layer_decay: float = 1.0,
        layer_decay_depth: int = 12,
        recipe: Recipe = Setting().recipe,  # noqa: B008 (frozen)
        seed: int = 0,
        model_config: dict[str, Any] | None = None,
    ) -> None:
        arguments = plain_arguments(locals())
        super().__init__(recipe)
        if encoder is None and model_config is None:
            raise InputError("there is no encoder to fine-tune: give --model.init_args.encoder CHECKPOINT or hf:NAME")
        self.task = _task(task, classes, encoder)
        self.source, self.has_head, self.tokenizer = str(encoder), True, None
        if encoder is None:
            config = AutoConfig.for_model(**(model_config or {}))
            self.model = attach_positions(AutoModelForSequenceClassification.from_config(config))
        else:
            head_seed = derive_seed(seed, "head")
            opened = open_encoder(encoder, self.task.num_outputs, dropout, head_seed, self.task.labels)
            self.model, self.tokenizer, self.has_head = opened.model, opened.tokenizer, opened.has_head
        self.layer_decay, self.layer_decay_depth, self.seed = layer_decay, layer_decay_depth, seed
        self.parameter_groups()  # a wrong layer_decay shows before anything starts
        names = list(self.task.labels) if self.task.name == OWN else None
        arguments |= {"encoder": None, "model_config": self.model.config.to_dict(), "classes": names}
        self.save_hyperparameters(arguments)
        self.train()  # a loaded encoder is in evaluation mode, without dropout
        self.predictions: dict[str, pd.DataFrame] = {}
        self._parts: dict[int, list[dict[str, Tensor]]] = {}
        self._losses = torch.zeros(2)  # of the epoch: the sum of the losses, and the number of steps
        self._first: Tensor | None = None  # loss of the first step, or of zero logits if that is larger

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, labels) in fp32 of a batch of tokens, see `bamboo.finetune.glue.batches.Batches`."""
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
        logits: Tensor = self.model(**{name: batch[name].long() for name in names}).logits  # XLNet subtracts its mask
        return logits.float()

    def compute(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and the share of its tokens that are padding."""
        logits, labels = self(batch), batch["label"]
        loss = self._loss(logits, labels)
        if stage == "train":  # summed on the device, and read once an epoch
            untrained = self._loss(torch.zeros_like(logits), labels)
            self._first = torch.maximum(loss.detach(), untrained) if self._first is None else self._first
            sums = torch.stack([loss.detach(), torch.ones_like(untrained)])
            self._losses = self._losses.to(sums.device) + sums
        return loss, {"padding": 1 - batch["attention_mask"].float().mean()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.task.is_regression:
            return F.mse_loss(logits[:, 0], labels.float())
        return F.cross_entropy(logits, labels)

    def on_train_epoch_start(self) -> None:
        """Start the sums of the loss anew."""
        self._losses = torch.zeros(2)

    def on_fit_start(self) -> None:
        """From here on the head is one that is trained."""
        super().on_fit_start()
        self.has_head = True

    def check_converged(self) -> None:
        """Refuse a model that is worse on what it learned from than it was before.

        Naming one class for all texts is a poor model, but one: its loss is near that of zero logits. A run has
        diverged where weights are not finite, or the loss of its last epoch is above `DIVERGED` times that of its first
        step, or of zero logits where that is larger.

        Raises:
            InputError: with the reason.
        """
        for name, weight in self.model.named_parameters():
            if not weight.isfinite().all():
                raise InputError(f"training diverged: {name} is not finite")
        assert self._first is not None
        first, last = float(self._first), float(self._losses[0] / self._losses[1])
        if not last <= DIVERGED * first:
            raise InputError(
                f"training diverged: a loss of {first:.3g} in the first step, and {last:.3g} in the last epoch"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, by layer, and by whether there is weight decay."""
        return layer_groups(self.model, self.layer_decay, self.recipe.weight_decay, self.layer_decay_depth)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep what the model says of each text."""
        self._parts.setdefault(dataloader_idx, []).append(self.predict_step(batch, batch_idx))

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """What the model says of each text, (B,) each, beside the text's number and label, -1 where it is not known.

        Raises:
            InputError: for logits that are not finite.
        """
        index = batch["index"]
        if not len(index):  # fewer texts than processes
            return dict.fromkeys(("number", "label", "predicted", "probability"), torch.empty(0))
        logits, label = self(batch), batch.get("label", torch.full_like(index, -1))
        if not logits.isfinite().all():
            raise InputError(f"the model's outputs are not finite, on text {int(index[0])} of a batch for one")
        probability, predicted = logits.softmax(dim=1).max(dim=1)
        predicted = logits[:, 0] if self.task.is_regression else predicted
        return {"number": index, "label": label, "predicted": predicted, "probability": probability}

    def on_validation_epoch_end(self) -> None:
        """Gather from all processes, put back into order, and measure: `val/METRIC`, and `val/score`, its summary."""
        names = self.trainer.datamodule.eval_names  # type: ignore[attr-defined]
        self.predictions = {split: in_order(self._parts.pop(number, [])) for number, split in enumerate(names)}
        metrics = measure(self.task, self.predictions)
        for split, values in metrics.items():
            suffix = split.removeprefix("dev")  # `_matched` and `_mismatched` for MNLI
            self.log_dict({f"val/{name}{suffix}": value for name, value in values.items()})
        self.log("val/score", headline(self.task, metrics), prog_bar=True)

    def setup(self, stage: str) -> None:
        """Check the model against the data, by name."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and data.task != self.task:
            raise InputError(
                f"the model is for {self.task.name} and the data are {data.task.name}: "
                "set model.init_args.task and data.init_args.task alike"
            )

    def on_validation_start(self) -> None:
        """Refuse a head that nothing has trained."""
        if not self.has_head:
            wanted, known = self.task.labels or ("a score",), head_classes(self.source) or ("none",)
            raise InputError(
                f"{self.source} has no head for {', '.join(wanted)}: its classes are {', '.join(known)}; "
                "fine-tune it first, or give --ckpt_path"
            )

    on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the tokenizer, so that the checkpoint is read without the encoder."""
        super().on_save_checkpoint(checkpoint)
        if self.tokenizer is not None:
            checkpoint.update(tokenizer_state(self.tokenizer))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the tokenizer from the run. Raises `InputError` for a checkpoint of another model or other classes."""
        super().on_load_checkpoint(checkpoint)
        self.has_head = True
        config = checkpoint.get("hyper_parameters", {}).get("model_config")
        if config is None:  # of a version that kept none
            return
        saved, current = (
            [names[key] for key in sorted(names, key=int)] for names in (config["id2label"], self.model.config.id2label)
        )
        if saved != current:
            raise InputError(
                f"the checkpoint's classes are {', '.join(saved)} and the model's {', '.join(current)}: "
                "list the same names in the same order, or give the checkpoint as model.init_args.encoder"
            )
        if self.tokenizer is None:
            self.tokenizer = restore_tokenizer(checkpoint)


def _task(name: str, classes: Sequence[str] | None, encoder: str | Path | None) -> Task:
    if plain(name) == OWN:
        own = classes or (head_classes(encoder) if encoder is not None else ())
        if not own:
            raise InputError(f"{encoder} names no classes: give --model.init_args.classes '[NAME, NAME]'")
        return own_task(own)
    if classes:
        raise InputError(f"the classes of {name} are known: leave model.init_args.classes out")
    return find_tasks([name])[0]


def measure(task: Task, predictions: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    """The metrics of every split of a task."""
    return {
        split: compute(task, torch.tensor(each["predicted"].to_numpy()), torch.tensor(each["label"].to_numpy()))
        for split, each in predictions.items()
    }
