"""Tasks in worker processes: a worker that dies costs its task alone, and is replaced."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from bamboo.errors import InputError

Task = TypeVar("Task")
Report = Callable[[int], Any]
"""Takes by how much the progress bar moves on."""


def run_tasks(
    function: Callable[[Task, Report], Any],
    tasks: Sequence[Task],
    environments: Sequence[Mapping[str, str]],
    ended: Callable[[Task, str | None], Any],
    bar: "tqdm[Any]",
) -> None:
    """Run tasks in order, as many at a time as there are environments, each in a process that lives on for the next.

    Workers ignore SIGINT, which is the parent's to handle, and end where their parent is killed.

    Args:
        function: runs a task; it can be pickled.
        tasks: can be pickled; their names are shown in the bar.
        environments: variables of each worker, such as `OMP_NUM_THREADS` and `CUDA_VISIBLE_DEVICES`, set before it
            imports anything.
        ended: is given each task when it ends, and why it failed: an exception, or the death of its worker.
        bar: is moved on by what `function` reports.
    """
    waiting = deque(tasks)
    workers = [_Worker(function, environment) for environment in environments]
    try:
        for worker in workers[: len(waiting)]:
            worker.begin(waiting.popleft())
        while busy := {worker.pipe: worker for worker in workers if worker.task is not None}:
            bar.set_postfix_str(", ".join(str(getattr(w.task, "name", w.task)) for w in busy.values()))
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                message = worker.receive()
                if isinstance(message, int):
                    bar.update(message)
                    continue
                ended(worker.end(), message or None)
                if waiting:
                    worker.begin(waiting.popleft())
    finally:
        for worker in workers:
            worker.stop()


def worker_environments(workers: int | None = None, on_cpu: int = 1) -> list[dict[str, str]]:
    """Which GPU each worker sees: one for each GPU, or `workers` of them that share the GPUs.

    Without a GPU there are `workers`, or `on_cpu`, and no variables.

    Raises:
        InputError: where that many workers cannot be.
    """
    import torch

    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    count = torch.cuda.device_count()
    if not count:
        return [{}] * (workers or on_cpu)
    gpus = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in islice(cycle(gpus), workers or count)]


def reason_of(error: Exception) -> str:
    """An exception in one line, with its kind unless it was raised to be read."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


class _Worker(Generic[Task]):
    """A process, started when it is first needed or after it died, its pipe, and the task that it is at."""

    def __init__(self, function: Callable[[Task, Report], Any], environment: Mapping[str, str]) -> None:
        self.function, self.environment = function, environment
        self.process: Any = None
        self.task: Task | None = None

    def begin(self, task: Task) -> None:
        """Give the process a task."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, far_end = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.function, far_end))
            with _environment(self.environment):
                self.process.start()
            far_end.close()  # so that the death of the process is the end of the pipe
        self.task = task
        with suppress(BrokenPipeError):  # it has just died, which `receive` will find
            self.pipe.send(task)

    def receive(self) -> int | str:
        """Progress; or why the task failed, empty if it did not."""
        try:
            message: int | str = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            message = f"the worker process ended by {f'exit code {code}' if code >= 0 else signal.Signals(-code).name}"
            message += ", most often for want of memory" if code == -signal.SIGKILL else ""
        return message

    def end(self) -> Task:
        """The task, which is over."""
        task, self.task = self.task, None
        assert task is not None
        return task

    def stop(self) -> None:
        """End the process, in the middle of its task if it has one."""
        if self.process is not None:
            self.pipe.close()  # which an idle worker takes for the end
            if self.task is not None:
                self.process.kill()
            self.process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables that a process started meanwhile inherits."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(function: Callable[[Any, Report], Any], pipe: Any) -> None:
    """What a worker does until the other end of its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            task = pipe.recv()
            try:
                function(task, pipe.send)
            except Exception as error:
                pipe.send(reason_of(error))
            else:
                pipe.send("")


def _end_with_parent() -> None:
    """Leave no orphan that goes on with a task which another process has taken up."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
