"""Next-token prediction: guess each token from those before it (Radford et al. 2018)."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from bamboo.text.encoder import hidden_states, prediction_head
from bamboo.text.masking import IGNORED
from bamboo.text.mlm import Guesses


def next_tokens(ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """What each token of a block (B, T) is to guess (B, T): the token behind it, or `IGNORED`.

    Not asked for is the [SEP] that ends every block, which says where a block was cut and nothing of the text, and
    where `documents` (B, T) says which token is of which, the first token of each, of which nothing was read.
    """
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-2] = ids[:, 1:-1]
    if documents is not None:
        labels[:, :-1] = labels[:, :-1].masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
    return labels


def guess_next(model: PreTrainedModel, ids: Tensor, labels: Tensor, documents: Tensor | None = None) -> Guesses:
    """Run a causal language model over blocks (B, T), and compare its guess at each token with `labels` (B, T)."""
    logits = prediction_head(model)(hidden_states(model, ids, documents)[:, :-2].flatten(0, 1))
    asked_for = labels[:, :-2].flatten()
    asked = (asked_for != IGNORED).sum()
    loss = F.cross_entropy(logits.float(), asked_for, ignore_index=IGNORED, reduction="sum") / asked.clamp(min=1)
    return Guesses(loss, (logits.detach().argmax(-1) == asked_for).sum(), asked)
