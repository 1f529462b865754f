"""Processes that are a core each and end with the one that started them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from bamboo.errors import InputError


@contextmanager
def light_pool(
    workers: int, begin: Callable[..., None] | None = None, *args: Any, threads: int = 1
) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes, which share no memory and import only what their work needs.

    Args:
        workers: number of processes.
        begin: called once in each, with `args`.
        args: for `begin`.
        threads: of the tokenizers library in each.

    Raises:
        InputError: if one of them is killed.
    """
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (threads, begin, args)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise InputError("a worker was killed (memory?): the same command goes on where this one was") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int, begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin(*args)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
