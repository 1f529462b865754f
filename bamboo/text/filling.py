"""What a masked language model puts in the place of [MASK], and what a run shows of its model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bamboo.errors import InputError
from bamboo.loggers import log_text
from bamboo.text.continuing import continue_text
from bamboo.text.encoder import is_causal, longest_sequence
from bamboo.text.pretraining import MLMPretraining
from bamboo.text.tokenizer import MASK, special_ids

CONTINUED = 12
"""Tokens that a causal model adds to a sentence."""


class Filled(NamedTuple):
    """One [MASK] of a sentence: its best guesses, the likeliest first, with their probabilities."""

    words: list[str]
    probabilities: list[float]


@torch.no_grad()
def fill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | Tokenizer, sentence: str, top: int = 5
) -> list[Filled]:
    """The `top` likeliest words for every [MASK] of a sentence, each guessed with the others still hidden.

    Raises:
        InputError: where there is no mask, nothing is asked for, or the sentence is longer than the model's positions.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    if is_causal(model.config):
        raise InputError("a causal language model continues a text and fills in nothing: see continue_text")
    backend: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    mask = special_ids(backend)["mask"]
    encoding = backend.encode(sentence.replace(MASK, backend.id_to_token(mask) or ""))
    if len(encoding.ids) > longest_sequence(model.config):
        raise InputError(f"{len(encoding.ids)} tokens are more than the model's {longest_sequence(model.config)}")
    ids = torch.tensor([encoding.ids], device=model.device)
    masks = torch.tensor(encoding.ids) == mask
    if not masks.any():
        raise InputError(f"no {MASK} in {sentence!r}: put one where a word is to be guessed")
    # Behind the tokens of the tokenizer the padded vocabulary holds nothing that could be written.
    logits = model(ids).logits[0, masks, : backend.get_vocab_size()].float()
    best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        Filled([backend.decode([number], skip_special_tokens=False).strip() for number in numbers], probabilities)
        for numbers, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def filled_in(sentence: str, filled: Sequence[Filled]) -> str:
    """The sentence with the likeliest word in the place of each [MASK]."""
    for guesses in filled:
        sentence = sentence.replace(MASK, guesses.words[0], 1)
    return sentence


class FilledSentences(Callback):
    """Fills in sentences with [MASK] in them after every validation, logs them, and shows them when the run ends.

    A causal model continues what stands before the [MASK].
    """

    def __init__(self, sentences: Sequence[str]):
        self.sentences = list(sentences)
        self.lines: dict[str, str] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill in the sentences, and note how well the held-out text is guessed."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MLMPretraining)
        tokenizer, causal = trainer.datamodule.tokenizer, is_causal(pl_module.model.config)  # type: ignore[attr-defined]
        if causal:
            beginnings = [sentence.partition(MASK)[0].strip() for sentence in self.sentences]
            filled = [continue_text(pl_module.model, tokenizer, text, CONTINUED) for text in beginnings]
        else:
            filled = [filled_in(sentence, fill(pl_module.model, tokenizer, sentence)) for sentence in self.sentences]
        right, baseline = (float(trainer.callback_metrics[f"val/{key}"]) for key in ("accuracy", "most_frequent_token"))
        note = f"{right:.1%} of held-out text (the most frequent token always: {baseline:.1%})"
        self.lines = {f"{'next' if causal else 'masked'} tokens guessed right": note}
        if causal:
            self.lines["perplexity"] = f"{float(trainer.callback_metrics['val/perplexity']):.1f}"
        self.lines |= dict(zip(beginnings if causal else self.sentences, filled, strict=True))
        log_text(trainer, "filled", filled, trainer.global_step)

    def summary(self) -> dict[str, str]:
        """What was noted last, for the end of a run."""
        return self.lines
