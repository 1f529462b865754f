"""Which tokens a masked language model has to guess: as many in every sequence, so that every shape is static."""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""The label that counts for nothing, as in PyTorch's cross-entropy."""


class Masked(NamedTuple):
    """What the model reads (B, T), which tokens it predicts (B, K), and what stands there (B, K) or is `IGNORED`."""

    input_ids: Tensor
    positions: Tensor
    labels: Tensor


class Vocabulary(NamedTuple):
    """The number of [MASK], which tokens are never masked (V,), and which continue a word, such as `##ing` (V,)."""

    mask: int
    special: Tensor
    continues: Tensor


def masked_count(length: int, mask_ratio: float) -> int:
    """Tokens to predict in a sequence of `length`: round(length x mask_ratio), at least one."""
    return max(1, round(length * mask_ratio))


def mask_tokens(ids: Tensor, noise: Tensor, count: int, vocabulary: Vocabulary, whole_words: bool = False) -> Masked:
    """Choose `count` tokens of each sequence; show 80 % of them as [MASK], 10 % as a random token, 10 % as they are.

    The tokens with the lowest noise are chosen; special tokens never are. With `whole_words` the words with the lowest
    noise (at their first token) are chosen one after the other; of a word that would pass `count` nothing is masked, so
    a few labels are then `IGNORED`, as they are where a sequence has fewer than `count` tokens to mask. A random token
    is drawn from the whole vocabulary (Devlin et al. 2019).

    Args:
        ids: token numbers (B, T).
        noise: uniform on [0, 1) (B, T, 3): the choice, what becomes of it, and the random token.
        count: tokens to choose in each sequence, K.
        vocabulary: of the tokenizer.
        whole_words: choose all tokens of a word or none.
    """
    special = vocabulary.special[ids]
    choice = noise[..., 0]
    if whole_words:
        starts = ~vocabulary.continues[ids]
        starts[:, 0] = True
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        word = places.where(starts, 0).cummax(1).values  # the place of its first token names a word
        choice = choice.gather(1, word)
    choice = choice.masked_fill(special, 2.0)
    order = choice.argsort(dim=1, stable=True)
    positions = order[:, :count]
    asked = ~special.gather(1, positions)
    if whole_words and count < ids.shape[1]:
        in_order = word.gather(1, order)
        cut = (in_order[:, count - 1] == in_order[:, count])[:, None]
        asked &= ~(cut & (in_order[:, :count] == in_order[:, count - 1 : count]))
    chosen = ids.gather(1, positions)
    _, fate, draw = noise.gather(1, positions[..., None].expand(-1, -1, 3)).unbind(-1)
    shown = chosen.where(fate >= 0.9, (draw * len(vocabulary.special)).long())
    shown = shown.where(fate >= 0.8, vocabulary.mask)
    input_ids = ids.scatter(1, positions, shown.where(asked, chosen))
    return Masked(input_ids, positions, chosen.where(asked, IGNORED))
