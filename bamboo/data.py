"""What the data modules of images and of texts share: loaders that deal samples to processes and restart anywhere."""

import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from lightning import LightningDataModule
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from bamboo.errors import InputError
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
        """Number of processes that train, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

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


def from_first_process(read: Callable[[], T]) -> T:
    """What `read` gives on the first process, sent to the others; all must call this, and all raise what it raises."""
    if not _several_processes():
        return read()
    outcome: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            outcome = [read()]
        except InputError as error:
            outcome = [error]
        except Exception as error:  # of any kind, which may not survive being sent
            outcome = [RuntimeError(f"the first process failed: {error!r}").with_traceback(error.__traceback__)]
    distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    result: T = outcome[0]
    return result


def check_everywhere(check: Callable[[], object]) -> None:
    """Call `check` on every process; all must call this, and all raise the `InputError` that it raises on any."""
    if not _several_processes():
        check()
        return
    reason = ""
    try:
        check()
    except InputError as error:
        reason = f"process {distributed.get_rank()} on {platform.node()}: {error}"
    reasons = [""] * distributed.get_world_size()
    distributed.all_gather_object(reasons, reason)
    if bad := next(filter(None, reasons), None):
        raise InputError(bad)


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
