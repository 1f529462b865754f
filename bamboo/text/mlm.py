"""Masked language modelling: hide some tokens, and guess them from the others (Devlin et al. 2019)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bamboo.text.encoder import hidden_states, prediction_head
from bamboo.text.masking import IGNORED, Masked


class Guesses(NamedTuple):
    """What a model makes of masked sequences.

    Args:
        loss: mean cross-entropy in nats over all tokens that are asked for; 0 where none is.
        right: how many of them have the highest logit.
        asked: how many there are.
    """

    loss: Tensor
    right: Tensor
    asked: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Share of tokens guessed right; 0 where none is asked for."""
        return self.right / self.asked.clamp(min=1)


def guess(model: PreTrainedModel, masked: Masked, documents: Tensor | None = None) -> Guesses:
    """Run a masked language model; only masked positions go through the projection to the vocabulary.

    With the same weights and labels, loss and gradients equal those of transformers' `BertForMaskedLM`, which projects
    every token. Attention stays within `documents` (B, T), the number of each token's document, where they are given.
    """
    hidden = hidden_states(model, masked.input_ids, documents)
    places = masked.positions[..., None].expand(-1, -1, hidden.shape[-1])
    logits = prediction_head(model)(hidden.gather(1, places).flatten(0, 1))
    labels = masked.labels.flatten()
    asked = (labels != IGNORED).sum()
    # The sum over the count, for the mean over nothing is not a number.
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum") / asked.clamp(min=1)
    return Guesses(loss, (logits.detach().argmax(-1) == labels).sum(), asked)


def documents_of(ids: Tensor, separator: int) -> Tensor:
    """Number of each token's document within its sequence (B, T): a document ends with its `separator`."""
    ends = ids == separator
    return torch.cumsum(ends, 1) - ends.long()
