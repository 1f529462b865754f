"""What the processes of a run tell each other; a run of one process needs no others."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from bamboo.errors import InputError

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes that `torchrun` started, and leave them at the end; each has a GPU where there are some.

    Raises:
        InputError: where there are more processes than GPUs.
    """
    rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if rank >= torch.cuda.device_count():
            raise InputError(f"process {rank} has no GPU: start as many processes as there are GPUs")
        torch.cuda.set_device(rank)
    distributed.init_process_group()
    try:
        yield
    finally:
        distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the process that prints and writes, as the only one always is."""
    return not _several_processes() or distributed.get_rank() == 0


def world_and_rank() -> tuple[int, int]:
    """How many processes there are, and which of them this is."""
    return (distributed.get_world_size(), distributed.get_rank()) if _several_processes() else (1, 0)


def from_first_process(read: Callable[[], T]) -> T:
    """What `read` gives on the first process, sent to the others; all must call this, and all raise what it raises."""
    if not _several_processes():
        return read()
    outcome: list[Any] = [None]
    if is_first_process():
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
    reason = ""
    try:
        check()
    except InputError as error:
        if not _several_processes():
            raise
        reason = f"process {distributed.get_rank()} on {platform.node()}: {error}"
    if bad := next(filter(None, of_all_processes(reason)), None):
        raise InputError(bad)


def of_all_processes(value: T) -> list[T]:
    """The values of all processes in the order of their ranks; all must call this. Tensors must be on the CPU."""
    if not _several_processes():
        return [value]
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
