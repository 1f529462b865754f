"""Processes that are a core each and end with the one that started them."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def light_pool(workers: int, begin: Callable[..., None] | None = None, *args: Any, threads: int = 1) -> Any:
    """A `ProcessPoolExecutor` of fresh processes: they share no memory, and import only what their work needs.

    Args:
        workers: number of processes.
        begin: called once in each, with `args`.
        args: for `begin`.
        threads: of the tokenizers library in each.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (threads, begin, args))


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
