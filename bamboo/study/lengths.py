"""Loss of a causal language model on texts longer than those it was trained on."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from bamboo.errors import Diverged, InputError
from bamboo.files import write_json
from bamboo.sampling import evenly_spread
from bamboo.text.corpus import Tokens
from bamboo.text.data import TextData
from bamboo.text.encoder import hidden_states, longest_sequence, prediction_head
from bamboo.text.tokenizer import special_ids

from .folders import LENGTHS

SCORED = 128
"""Tokens of a window that are scored, its last ones: the same at every length."""
READ = 8192
"""Tokens that are read at a time, where windows are shorter."""


def measure_lengths(
    model: PreTrainedModel, data: TextData, lengths: Sequence[int], windows: int, folder: Path
) -> dict[str, float]:
    """The loss at the greatest length, and how far it is above that at the least; losses go into a file of `folder`.

    A model whose positions end before the greatest length has neither.
    """
    losses = losses_by_length(model, data.text.val, special_ids(data.tokenizer)["cls"], lengths, windows)
    write_json(folder / LENGTHS, {str(length): loss for length, loss in losses.items()})
    if max(lengths) not in losses:
        return {}
    longest = losses[max(lengths)]
    return {"loss_longest": longest, "loss_beyond": longest - losses[min(lengths)]}


def check_stream(stream: Tokens, lengths: Sequence[int]) -> None:
    """Raise `InputError` where held-out tokens (N,) do not fill a window of the greatest length."""
    if len(stream) < max(lengths):
        raise InputError(f"{len(stream)} held-out tokens are less than a window of {max(lengths)}: hold out more")


@torch.no_grad()
def losses_by_length(
    model: PreTrainedModel, stream: Tokens, cls: int, lengths: Sequence[int], windows: int
) -> dict[int, float]:
    """Mean cross-entropy in nats of the same tokens, read behind more or less of what comes before them.

    A window of `length` tokens is predicted token by token from [CLS] and those before it, and its last `SCORED` count.
    Windows of all lengths end at the same places, evenly spread over the stream.

    Args:
        model: a causal language model in evaluation mode.
        stream: tokens of held-out documents (N,), end to end.
        cls: number of [CLS].
        lengths: of windows; those above the positions of the model are left out.
        windows: how many, at most.

    Raises:
        InputError: where the stream is shorter than the greatest length.
        Diverged: where a loss is not finite.
    """
    check_stream(stream, lengths)
    scored = min(SCORED, *lengths)
    ends = [max(lengths) + end for end in evenly_spread(len(stream) - max(lengths) + 1, windows)]
    losses = {}
    for length in (length for length in sorted(lengths) if length <= longest_sequence(model.config)):
        total = 0.0
        rows = max(1, READ // length)
        for first in range(0, len(ends), rows):
            parts = [torch.tensor(stream[end - length : end].astype("int64")) for end in ends[first : first + rows]]
            targets = torch.stack(parts).to(model.device)
            ids = torch.cat([torch.full_like(targets[:, :1], cls), targets[:, :-1]], 1)
            logits = prediction_head(model)(hidden_states(model, ids)[:, -scored:]).flatten(0, 1)
            total += float(F.cross_entropy(logits.float(), targets[:, -scored:].flatten(), reduction="sum"))
        losses[length] = total / (scored * len(ends))
    if not all(map(math.isfinite, losses.values())):
        raise Diverged("the loss of the trained model at one of the lengths is not finite")
    return losses
