"""Masked language modelling: the thin Lightning module around `bamboo.text.mlm`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from bamboo.errors import InputError
from bamboo.recipes import Recipe
from bamboo.shapes import find_shape
from bamboo.text.data import TextData
from bamboo.text.encoder import blocks_of, build_config, build_model
from bamboo.text.masking import Masked, Vocabulary, mask_tokens, masked_count
from bamboo.text.mlm import Guesses, documents_of, guess
from bamboo.text.module import TextModule
from bamboo.text.tokenizer import continues_word, special_ids
from bamboo.training import plain_arguments

BERT = Recipe(base_lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, schedule="linear", warmup_share=0.01)
"""Of Devlin et al. 2019: a warm-up over 1 % of the steps, then a line to zero."""


class MLMPretraining(TextModule):
    """Trains the masked language model whose configuration `build_config` makes of the remaining arguments.

    Args:
        recipe: learning rate, schedule and optimizer.
        seed: masks are a pure function of it, the epoch, the step and a block's place in the batch over all devices.
        mask_ratio: share of a block's tokens to predict, the same number in every block.
        whole_words: mask all pieces of a word or none.
        within_documents: let attention stay within a document, as if each were a sequence of its own.
        compile: compile each block where there is a GPU.
        grad_checkpointing: trade a second forward pass of the blocks for their memory.
        encoder: arguments of `bamboo.text.encoder.build_config`.
    """

    reads = TextData
    special: Tensor
    continues: Tensor

    def __init__(
        self,
        recipe: Recipe = BERT,
        seed: int = 0,
        mask_ratio: float = 0.15,
        whole_words: bool = False,
        within_documents: bool = False,
        compile: bool = False,
        grad_checkpointing: bool = False,
        **encoder: Any,
    ) -> None:
        arguments = plain_arguments(locals(), "encoder")
        super().__init__(recipe)
        self.save_hyperparameters(arguments)
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        self.seed, self.mask_ratio, self.whole_words = seed, mask_ratio, whole_words
        self.within_documents, self.compile_blocks = within_documents, compile
        self.model = build_model(build_config(**encoder))
        if grad_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.val_loss, self.val_accuracy, self.val_baseline = MeanMetric(), MeanMetric(), MeanMetric()

    def setup(self, stage: str) -> None:
        """Take the vocabulary from the data, and compile the blocks in place."""
        super().setup(stage)
        data: TextData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.ids, self.most_frequent_token = special_ids(data.tokenizer), data.most_frequent_token
        continues = torch.tensor(continues_word(data.tokenizer))
        special = torch.zeros_like(continues)
        special[list(self.ids.values())] = True
        self.register_buffer("special", special, persistent=False)
        self.register_buffer("continues", continues, persistent=False)
        self.compile_on_gpu(blocks_of(self.model))

    def mask(self, ids: Tensor, *key: str | int) -> Masked:
        """The masks of a batch (B, T) of this process; `key` says which batch of which epoch it is."""
        vocabulary = Vocabulary(self.ids["mask"], self.special, self.continues)
        count = masked_count(ids.shape[1], self.mask_ratio)
        return mask_tokens(ids, self.noise((*ids.shape, 3), *key), count, vocabulary, self.whole_words)

    def guess(self, batch: Mapping[str, Any], masked: Masked) -> Guesses:
        """What the model makes of a masked batch."""
        documents = documents_of(batch["input_ids"], self.ids["sep"]) if self.within_documents else None
        return guess(self.model, masked, documents)

    def compute(self, batch: Mapping[str, Any], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of blocks (B, T), and the share of masked tokens guessed right."""
        epoch = self.current_epoch if stage == "train" else 0
        guesses = self.guess(batch, self.mask(batch["input_ids"], stage, epoch, batch_idx))
        return guesses.loss, {"accuracy": guesses.accuracy}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Loss and accuracy under masks that are the same in every epoch; every masked token counts once."""
        if len(batch["input_ids"]):
            masked = self.mask(batch["input_ids"], "val", 0, batch_idx)
            guesses = self.guess(batch, masked)
            baseline = (masked.labels == self.most_frequent_token).sum() / guesses.asked.clamp(min=1)
            self.val_loss.update(guesses.loss, weight=guesses.asked)
            self.val_accuracy.update(guesses.accuracy, weight=guesses.asked)
            self.val_baseline.update(baseline, weight=guesses.asked)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log("val/most_frequent_token", self.val_baseline)

    def flops_per_sample(self, length: int | None = None) -> int:
        """FLOPs of one training step on one block of so many tokens, by default as long as those of the data.

        A backward pass costs as much as two forward passes.
        """
        length = length or int(self.trainer.datamodule.length)  # type: ignore[attr-defined]
        shape = find_shape(self.hparams["shape"])
        guesses, vocabulary = masked_count(length, self.mask_ratio), self.model.config.vocab_size
        return int(3 * (shape.flops(length) + 2 * guesses * shape.width * (shape.width + vocabulary)))
