"""What the data modules of images and of texts share: loaders that deal samples to processes and restart anywhere."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from bamboo.processes import world_and_rank
from bamboo.sampling import EvalSampler, Loader, TrainSampler
from bamboo.seeds import derive_seed

T = TypeVar("T")


class SampledData(LightningDataModule):
    """A data module whose training order is a pure function of the seed and the epoch.

    `batch_size` counts samples per process and step, `num_workers` processes that read them per training process.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._train_loader: Loader | None = None
        self._restored: Mapping[str, int] = {}

    def setup(self, stage: str | None = None) -> None:
        """Forget how far an earlier run was."""
        self._train_loader, self._restored = None, {}

    def train_loader(self, samples: Dataset[Any], batch: int) -> Loader:
        """Shuffled samples of this process's share, `batch` at a time."""
        sampler = TrainSampler(samples, batch, self.seed, *self.processes)
        self._train_loader = Loader(
            samples, batch, sampler=sampler, persistent_workers=self.num_workers > 0, **self.loader_options()
        )
        if self._restored:
            self._train_loader.load_state_dict(self._restored)
        return self._train_loader

    def eval_loader(self, samples: Dataset[Any]) -> DataLoader[Any]:
        """Samples in order, each of them once over all processes."""
        sampler = EvalSampler(samples, self.batch_size, *self.processes)
        options = {"sampler": sampler, "persistent_workers": self.num_workers > 0, **self.loader_options()}
        return DataLoader(samples, batch_size=self.batch_size, **options)  # Lightning wants to see the name batch_size

    def collate_fn(self) -> Callable[[Any], Any]:
        """What makes a batch of samples, which come as one if nothing else is said; worker processes get a copy."""
        return _as_it_is

    # Lightning restores the loader's own state too late when something has asked for the number of steps before.
    def state_dict(self) -> dict[str, int]:
        """How far the current epoch is."""
        return self._train_loader.state_dict() if self._train_loader else {}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Let the loader start after the batches that the epoch of the state had handed out."""
        self._restored = state_dict
        if self._train_loader:
            self._train_loader.load_state_dict(state_dict)

    @property
    def processes(self) -> tuple[int, int]:
        """Number of processes that take part, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else world_and_rank()

    def loader_options(self) -> dict[str, Any]:
        """What all loaders have in common."""
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # A generator of their own keeps the loaders from moving the global random stream when they start.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "loader"))
        return {
            "collate_fn": self.collate_fn(),
            "num_workers": self.num_workers,
            "pin_memory": on_cuda,
            "generator": generator,
        }


def _as_it_is(batch: T) -> T:
    return batch
