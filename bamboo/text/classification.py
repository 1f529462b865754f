"""The other objective: an encoder that starts from fresh weights and learns to name the class of a text."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bamboo.compiling import Compile
from bamboo.errors import InputError
from bamboo.recipes import Recipe
from bamboo.shapes import find_shape
from bamboo.text.attention import adaptation_flops
from bamboo.text.encoder import blocks_of, build_config, build_model
from bamboo.text.glosses import GlossSubjects
from bamboo.text.module import TextModule
from bamboo.training import plain_arguments


class TextClassification(TextModule):
    """Trains an encoder, whose configuration `build_config` makes of the remaining arguments, under a linear head.

    It is the sequence-level objective that the paper sets beside masked language modelling, on the same encoders.

    Args:
        recipe: learning rate, schedule and optimizer.
        seed: of dropout.
        pool: what the head reads: the first token, [CLS], or the mean over the words.
        compile: compile each block where there is a GPU; or `graphs`, see `bamboo.compiling.Compile`.
        encoder: arguments of `bamboo.text.encoder.build_config`.
    """

    reads = GlossSubjects

    def __init__(
        self,
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        seed: int = 0,
        pool: Literal["token", "avg"] = "token",
        compile: Compile = False,
        **encoder: Any,
    ) -> None:
        arguments = plain_arguments(locals(), "encoder")
        super().__init__(recipe)
        self.save_hyperparameters(arguments)
        self.seed, self.pool, self.compile_blocks = seed, pool, compile
        if encoder.get("objective", "masked") != "masked":
            raise InputError("a classifier reads a text in both directions: leave model.init_args.objective out")
        self.model = build_model(build_config(**encoder)).base_model
        self.head = nn.Linear(self.model.config.hidden_size, GlossSubjects.num_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.val_loss, self.val_accuracy = MeanMetric(), MulticlassAccuracy(GlossSubjects.num_classes, average="micro")

    def setup(self, stage: str) -> None:
        """Check that the data fit, and compile the blocks in place."""
        super().setup(stage)
        self.compile_on_gpu(blocks_of(self.model))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes) of a batch of padded texts (B, T)."""
        logits: Tensor = self.run(
            self._logits, batch["input_ids"], batch["attention_mask"].bool(), batch["special_tokens_mask"]
        )
        return logits.float()

    def _logits(self, ids: Tensor, read: Tensor, special: Tensor) -> Tensor:
        # Of a mask (B, T) transformers would ask whether it hides anything, for which the host waits.
        mask = read[:, None, None, :].expand(-1, 1, read.shape[1], -1)
        hidden = self.model(ids, attention_mask=mask).last_hidden_state
        if self.pool == "token":
            pooled = hidden[:, 0]
        else:
            words = (read & ~special)[..., None]
            pooled = (hidden * words).sum(1) / words.sum(1).clamp(min=1)
        logits: Tensor = self.head(pooled)
        return logits

    def flops_per_sample(self, length: int | None = None) -> int:
        """FLOPs of one training step on one text of so many tokens, by default the most that the data have."""
        length = length or int(self.trainer.datamodule.length)  # type: ignore[attr-defined]
        blocks = find_shape(self.hparams["shape"]).flops(length)
        return 3 * (blocks + adaptation_flops(self.model.config, length))

    def compute(self, batch: Mapping[str, Tensor], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a batch, and the share of its texts that are named right."""
        logits, labels = self(batch), batch["label"]
        return F.cross_entropy(logits, labels), {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Count right answers; every text counts once."""
        if len(batch["label"]):
            logits = self(batch)
            self.val_loss.update(F.cross_entropy(logits, batch["label"]), weight=len(logits))
            self.val_accuracy.update(logits, batch["label"])
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
