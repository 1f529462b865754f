"""Which sample comes when: the same for any number of workers and processes, also after a restart within an epoch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from bamboo.errors import InputError
from bamboo.seeds import derive_seed

NOTHING = -1
"""The index that stands for no sample at all."""


def evenly_spread(available: int, limit: int | None) -> Sequence[int]:
    """At most `limit` of the numbers below `available`, evenly spread; all of them for None."""
    if limit is None or limit >= available:
        return range(available)
    return [place * available // limit for place in range(limit)]


class TrainSampler(DistributedSampler[Any]):
    """Pairs `(index, epoch)` in an order that depends on the seed and the epoch alone.

    Rank r of W takes the positions r, r + W, ... of the global order, so that what all ranks read for a step is what
    one process with W times the `batch` would read. The tail that does not fill a batch on every rank is left out.
    It is a `DistributedSampler` so that Lightning sets its epoch and puts no other sampler in its place.

    Raises:
        InputError: where the data set does not fill one batch on every process.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, seed: int = 0, world: int = 1, rank: int = 0):
        super().__init__(dataset, num_replicas=world, rank=rank, seed=seed, drop_last=True)
        self.size = len(dataset)  # type: ignore[arg-type]
        self.batch = batch
        self.steps = self.size // (batch * world)
        self.start = 0  # steps of the epoch to leave out
        if not self.steps:
            raise InputError(f"{self.size} training samples do not fill a batch of {batch} on {world} process(es)")

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        order = torch.randperm(self.size, generator=generator)
        share = order[self.rank : len(self) * self.num_replicas : self.num_replicas]
        for index in share[self.start * self.batch :].numpy():  # of a list each number would take forty bytes
            yield int(index), epoch


class EvalSampler(DistributedSampler[Any]):
    """Every index exactly once over all ranks, in order; batches are filled up with `NOTHING`, never with duplicates.

    All ranks get equally many batches, for a collective operation in the forward pass would wait for ever on a rank
    that has none left, and each batch holds at least one sample wherever there are as many samples as batches.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, world: int = 1, rank: int = 0):
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        self.indices = range(rank, len(dataset), world)  # type: ignore[arg-type]
        self.batch = batch
        self.steps = math.ceil(self.num_samples / batch)

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[int]:
        cuts = [step * len(self.indices) // self.steps for step in range(self.steps + 1)]
        for start, end in pairwise(cuts):
            yield from self.indices[start:end]
            yield from [NOTHING] * (self.batch - (end - start))


class Loader(DataLoader[Any]):
    """A `DataLoader` over a `TrainSampler` that restarts in the middle of an epoch without reading what it skips.

    Lightning saves and restores its state with the loops', because it has `state_dict` and `load_state_dict`.
    """

    _state: Mapping[str, int] = {"epoch": 0, "batches": 0}
    _restored = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: the epoch is read and workers start at the first `next`, after Lightning has set the epoch.
        epoch = getattr(self.sampler, "epoch", 0)
        start = self._state["batches"] if self._restored and self._state["epoch"] == epoch else 0
        self._restored = False
        self.sampler.start = start  # type: ignore[attr-defined]
        for batches, batch in enumerate(super().__iter__(), start + 1):
            self._state = {"epoch": epoch, "batches": batches}
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the number of its batches that were handed out."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next pass after the batches in `state`, if it is a pass through the same epoch."""
        self._state, self._restored = dict(state), True
