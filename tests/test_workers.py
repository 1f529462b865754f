"""Workers run tasks, and one that dies is replaced; that an orphan ends is a test of studies."""

import io
import os
import signal
import sys

from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.workers import run_tasks, worker_environments


def work(task, report):
    if task == "torch":
        assert "torch" not in sys.modules, "a worker has imported torch before its environment was set"
    if task == "device":
        assert os.environ["DEVICE"] == "1"
    if task == "raise":
        raise InputError("bad\ninput")
    if task == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        raise SystemExit(3)
    report(2)


def run(tasks, places):
    ended = {}
    with tqdm(file=io.StringIO()) as bar:
        run_tasks(work, tasks, [{"DEVICE": "1"}] * places, lambda task, reason: ended.update({task: reason}), bar)
    return ended, bar.n


def test_a_task_that_fails_or_whose_worker_dies_costs_itself_alone():
    ended, moved = run(["torch", "raise", "die", "device", "exit", "interrupt", "last"], 1)
    assert ended == {
        "torch": None,
        "raise": "bad input",
        "die": "the worker process ended by SIGKILL, most often for want of memory",
        "device": None,
        "exit": "the worker process ended by exit code 3",
        "interrupt": None,
        "last": None,
    }
    assert moved == 2 * 4
    assert "DEVICE" not in os.environ


def test_more_workers_than_tasks_and_tasks_than_workers_all_end():
    assert run([], 2) == ({}, 0)
    assert run(["one"], 2) == ({"one": None}, 2)
    ended, moved = run([str(number) for number in range(5)], 2)
    assert (len(ended), moved) == (5, 10)


def test_workers_have_a_gpu_each_or_share_those_that_there_are(monkeypatch):
    import torch  # not above, for workers import this file

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [worker_environments(*given) for given in ((), (None, 3), (2, 3))] == [[{}], [{}] * 3, [{}] * 2]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus(*given):
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in worker_environments(*given)]

    assert [gpus(), gpus(None, 7), gpus(1), gpus(3)] == [["0", "1"], ["0", "1"], ["0"], ["0", "1", "0"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [gpus(), gpus(1), gpus(4)] == [["5", "7"], ["5"], ["5", "7", "5", "7"]]
