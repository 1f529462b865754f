"""Language modelling: the thin Lightning module around `bamboo.text.mlm` and `bamboo.text.next_token`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import AutoConfig, PreTrainedConfig

from bamboo.compiling import Compile
from bamboo.errors import InputError
from bamboo.files import read_file
from bamboo.recipes import Recipe
from bamboo.shapes import find_shape
from bamboo.stacking import Stack
from bamboo.text.attention import adaptation_flops, trained_length
from bamboo.text.data import TextData
from bamboo.text.encoder import blocks_of, build_config, build_model, is_causal, set_dropout
from bamboo.text.masking import Masked, Vocabulary, mask_tokens, masked_count
from bamboo.text.mlm import Guesses, documents_of, guess
from bamboo.text.module import TextModule
from bamboo.text.next_token import guess_next, next_tokens
from bamboo.text.starting import start
from bamboo.text.tokenizer import continues_word, special_ids
from bamboo.training import plain_arguments

BERT = Recipe(base_lr=1e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, schedule="linear", warmup_share=0.01)
"""Of Devlin et al. 2019: a warm-up over 1 % of the steps, then a line to zero."""


class MLMPretraining(TextModule):
    """Trains the language model whose configuration `build_config` makes of the remaining arguments.

    Its `objective` is among them: `masked`, or `causal`, which masks nothing and leaves what says of masks unread.

    Args:
        recipe: learning rate, schedule and optimizer.
        seed: masks are a pure function of it, the epoch, the step and a block's place in the batch over all devices.
        mask_ratio: share of a block's tokens to predict, the same number in every block.
        whole_words: mask all pieces of a word or none.
        within_documents: let attention stay within a document, as if each were a sequence of its own.
        compile: compile each block where there is a GPU; or `graphs`, see `bamboo.compiling.Compile`.
        grad_checkpointing: trade a second forward pass of the blocks for their memory.
        init_from: weights to start from: a checkpoint of this class, or a Hugging Face folder, `hf:NAME`. Vocabulary,
            positions and norms are then those of the source. It is read once, and not by a run that `--ckpt_path`
            resumes: its checkpoint holds all that there is of the model.
        stack: how the blocks of a shallower encoder make this one: `repeat` or `identity`, see
            `bamboo.stacking.origins`.
        config: configuration of the model in transformers' words, in place of what `encoder` says; a run that started
            from weights keeps it in its checkpoints.
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
        compile: Compile = False,
        grad_checkpointing: bool = False,
        init_from: str | Path | None = None,
        stack: Stack | None = None,
        config: dict[str, Any] | None = None,
        **encoder: Any,
    ) -> None:
        arguments = plain_arguments(locals(), "encoder")
        super().__init__(recipe)
        if stack and not init_from:
            raise InputError("stack repeats the blocks of an encoder: give that as model.init_args.init_from")
        self.init_from, self.stack, self.has_weights = init_from, stack, init_from is None
        # What a checkpoint says of the model: it has weights, and needs no others to start from.
        self.save_hyperparameters({**arguments, "init_from": None, "stack": None})
        if not 0 < mask_ratio < 1:
            raise InputError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
        self.seed, self.mask_ratio, self.whole_words = seed, mask_ratio, whole_words
        self.within_documents, self.compile_blocks = within_documents, compile
        self.dropout = float(encoder.get("dropout", 0.0))
        self._build(AutoConfig.for_model(**config) if config else build_config(**encoder))
        self.val_loss, self.val_accuracy, self.val_baseline = MeanMetric(), MeanMetric(), MeanMetric()

    def _build(self, config: PreTrainedConfig) -> None:
        """Make a model with fresh weights."""
        set_dropout(config, self.dropout)
        self.model = build_model(config)
        if self.hparams["grad_checkpointing"]:
            self.model.gradient_checkpointing_enable()
        if self.within_documents and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise InputError("within_documents needs attention to all tokens, and blocks of this model slide a window")

    def begin(self, tokenizer: Tokenizer) -> None:
        """Start from weights, or be the model of the checkpoint whose weights are to come."""
        if self.trainer.ckpt_path:
            self._adopt(read_file(self.trainer.ckpt_path).get("hyper_parameters", {}))
        elif self.init_from and not self.has_weights:
            config, weights, report = start(self.init_from, self.model.config, tokenizer, self.stack)
            self._adopt({"config": config.to_dict()})
            self.model.load_state_dict(weights)
            self.has_weights = True
            if self.trainer.is_global_zero:
                print(report)

    def _adopt(self, said: Mapping[str, Any]) -> None:
        """Be the model that a run's checkpoint or a source describes in transformers' words."""
        if said.get("config") and said["config"] != self.hparams["config"]:
            config = AutoConfig.for_model(**said["config"])
            sizes = {"vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
            self.hparams.update({"config": said["config"], **sizes, "max_positions": trained_length(config)})
            self._build(config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Be the model of the checkpoint. Raises `InputError` for that of another one."""
        self._adopt(checkpoint.get("hyper_parameters", {}))
        super().on_load_checkpoint(checkpoint)
        self.has_weights = True

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

    def guess(self, batch: Mapping[str, Any], *key: str | int) -> tuple[Guesses, Tensor]:
        """What the model makes of a batch, and the tokens that it is asked for; `key` is that of the masks."""
        ids = batch["input_ids"]
        documents = documents_of(ids, self.ids["sep"]) if self.within_documents else None
        further = () if documents is None else (documents,)
        guesses: Guesses
        if is_causal(self.model.config):
            labels = next_tokens(ids, documents)
            guesses = self.run(lambda *parts: guess_next(self.model, *parts), ids, labels, *further)
            return guesses, labels
        masked = self.mask(ids, *key)
        guesses = self.run(lambda *parts: guess(self.model, Masked(*parts[:3]), *parts[3:]), *masked, *further)
        return guesses, masked.labels

    def compute(self, batch: Mapping[str, Any], batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of blocks (B, T), and the share of the tokens asked for that are guessed right."""
        epoch = self.current_epoch if stage == "train" else 0
        guesses, _ = self.guess(batch, stage, epoch, batch_idx)
        return guesses.loss, {"accuracy": guesses.accuracy}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Loss and accuracy, under masks that are the same in every epoch; every token asked for counts once."""
        if len(batch["input_ids"]):
            guesses, labels = self.guess(batch, "val", 0, batch_idx)
            baseline = (labels == self.most_frequent_token).sum() / guesses.asked.clamp(min=1)
            self.val_loss.update(guesses.loss, weight=guesses.asked)
            self.val_accuracy.update(guesses.accuracy, weight=guesses.asked)
            self.val_baseline.update(baseline, weight=guesses.asked)
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log("val/most_frequent_token", self.val_baseline)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity of a causal model, over all tokens of all processes."""
        if is_causal(self.model.config):
            self.log("val/perplexity", self.val_loss.compute().exp(), prog_bar=True)

    def flops_per_sample(self, length: int | None = None) -> int:
        """FLOPs of one training step on one block of so many tokens, by default as long as those of the data.

        A backward pass costs as much as two forward passes.
        """
        length = length or int(self.trainer.datamodule.length)  # type: ignore[attr-defined]
        shape = find_shape(self.hparams["shape"])
        guesses = length - 2 if is_causal(self.model.config) else masked_count(length, self.mask_ratio)
        vocabulary = self.model.config.vocab_size
        blocks = shape.flops(length) + adaptation_flops(self.model.config, length)
        return int(3 * (blocks + 2 * guesses * shape.width * (shape.width + vocabulary)))
