"""What the processes of a run tell each other; a run of one process needs no others."""

import platform
from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from bamboo.errors import InputError

T = TypeVar("T")


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
