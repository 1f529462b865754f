"""Batches by length: sequences of like length go together, and are padded to the longest of their batch alone."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, DistributedSampler

from bamboo.errors import InputError
from bamboo.seeds import derive_seed

POOL = 50
"""Batches that are sorted by length together in training: enough that little is padded, few enough to stay random."""

NARROW = 0.8
"""A batch of evaluation ends where the next text is shorter than this share of its longest, once it is worth a pass."""

CHUNK = 10_000
"""Texts that are tokenised at a time."""


class Tokens(NamedTuple):
    """Tokenised texts.

    Args:
        ids: token numbers of each text, (length,) in int32.
        types: 0 for the first text of a pair and 1 for the second, likewise; None where the encoder does not tell.
    """

    ids: Sequence[Tensor]
    types: Sequence[Tensor] | None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text (n,)."""
        return np.array([len(text) for text in self.ids], np.int64)


def tokenise(
    tokenizer: Any, first: Sequence[str], second: Sequence[str] | None, max_length: int = 128, types: bool = True
) -> Tokens:
    """Tokenise single texts, or pairs, with the encoder's own tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        first: the texts.
        second: the other text of each pair.
        max_length: tokens at most, special ones included; of a pair the longer text is cut first.
        types: whether the encoder tells the two texts of a pair apart.
    """
    ids: list[Tensor] = []
    segments: list[Tensor] = []
    options = {"truncation": "longest_first", "max_length": max_length, "return_attention_mask": False}
    for start in range(0, len(first), CHUNK):
        texts = [list(part[start : start + CHUNK]) for part in (first, second) if part is not None]
        encoded = tokenizer(*texts, **options, return_token_type_ids=types)
        ids += [torch.tensor(row, dtype=torch.int32) for row in encoded["input_ids"]]
        segments += [torch.tensor(row, dtype=torch.int8) for row in encoded["token_type_ids"]] if types else []
    return Tokens(ids, segments if types else None)


class Batches(Dataset[dict[str, Tensor]]):
    """Padded batches of tokenised texts: what is read is not a text, but the texts of a batch, at once.

    A batch is `{"input_ids": int64 (B, T), "attention_mask": bool (B, T), "index": int64 (B,)}`, with
    `"token_type_ids"` (B, T) where the encoder tells the texts of a pair apart, and `"label"` (B,) where it is known.

    Args:
        tokens: the texts.
        labels: number of each text's class, or its score; None where they are not known.
        pad: number of the padding token.
        side: where a short text is padded: `right`, or `left` for encoders that read the last token, as XLNet does.
    """

    def __init__(
        self, tokens: Tokens, labels: Sequence[int] | Sequence[float] | None, pad: int = 0, side: str = "right"
    ):
        self.tokens, self.pad, self.side = tokens, pad, side
        self.labels = None if labels is None else torch.as_tensor(labels)

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.tokens.ids[index] for index in indices]
        batch = {"input_ids": self._padded(rows, self.pad).long(), "index": torch.as_tensor(indices).long()}
        batch["attention_mask"] = self._padded([torch.ones_like(row, dtype=torch.bool) for row in rows])
        if self.tokens.types is not None:
            batch["token_type_ids"] = self._padded([self.tokens.types[index] for index in indices]).long()
        return batch if self.labels is None else batch | {"label": self.labels[batch["index"]]}

    def _padded(self, rows: list[Tensor], value: int = 0) -> Tensor:
        if not rows:  # fewer texts than processes
            return torch.empty(0, 0)
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.side)


class TrainBatches(DistributedSampler[Any]):
    """Lists of indices, one list for each step, in an order that depends on the seed and the epoch alone.

    An epoch is shuffled and cut into pools; a pool is sorted by length and cut into batches, and all batches are
    shuffled. Every text comes once an epoch: where the batches do not come out even, some are one text shorter, so that
    no step sees only a few. All processes take equally many steps, each its share of the same global batch.
    It is a `DistributedSampler` so that Lightning sets its epoch and puts no other sampler in its place.

    Args:
        data: the texts.
        batch: texts that one process takes per step, at most.
        seed: seed of the order.
        world: number of processes.
        rank: which of them this is.
        pool: batches that are sorted together; 0 leaves the order random.

    Raises:
        InputError: where there are fewer texts than processes.
    """

    def __init__(self, data: Batches, batch: int, seed: int = 0, world: int = 1, rank: int = 0, pool: int = POOL):
        super().__init__(data, num_replicas=world, rank=rank, seed=seed)
        if len(data) < world:
            raise InputError(f"{len(data)} training texts are not enough for {world} process(es)")
        self.lengths, self.pool = data.tokens.lengths, pool
        # At least one text for every process, also where a batch is so small that this makes it one larger.
        self.steps = min(math.ceil(len(data) / (batch * world)), len(data) // world)
        self.start = 0  # steps of the epoch to leave out

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batches", self.epoch))
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        cuts = np.arange(self.steps + 1) * len(order) // self.steps
        for first in range(0, self.steps, self.pool) if self.pool else ():
            part = slice(cuts[first], cuts[min(first + self.pool, self.steps)])
            order[part] = order[part][np.argsort(self.lengths[order[part]], kind="stable")]
        for step in torch.randperm(self.steps, generator=generator).tolist()[self.start :]:
            yield order[cuts[step] + self.rank : cuts[step + 1] : self.num_replicas].tolist()


class EvalBatches(DistributedSampler[Any]):
    """Lists of indices that hold every text exactly once over all processes, the longest texts first.

    A batch has as many texts as fit into `max_tokens`, padding included. It ends before where it is an eighth full and
    the next text is shorter than `NARROW` of its longest, for that text would be padded much. All processes get equally
    many batches, for a collective operation would wait for ever on one that has none left; an empty one can only be
    where there are fewer texts than processes.

    Args:
        data: the texts.
        max_tokens: tokens of a batch of one process; a longer text is a batch of its own.
        world: number of processes.
        rank: which of them this is.
    """

    def __init__(self, data: Batches, max_tokens: int = 8192, world: int = 1, rank: int = 0):
        super().__init__(data, num_replicas=world, rank=rank, shuffle=False)
        lengths = data.tokens.lengths
        self.order = np.argsort(-lengths, kind="stable")
        falling = lengths[self.order]
        cuts = [0]
        while cuts[-1] < len(falling):
            fitting = max(1, max_tokens // max(1, int(falling[cuts[-1]])))
            alike = int(np.searchsorted(-falling, -NARROW * falling[cuts[-1]], side="right")) - cuts[-1]
            size = min(world * fitting, max(alike, world * math.ceil(fitting / 8)))
            cuts.append(min(cuts[-1] + size, len(falling)))
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < world:  # too few for all: the batch before takes them
            del cuts[-2]
        self.cuts = cuts

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in pairwise(self.cuts):
            yield self.order[start + self.rank : end : self.num_replicas].tolist()
