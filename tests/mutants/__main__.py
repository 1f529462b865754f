"""`make mutants`: does a test fail where the software is wrong? Each mutant is one such mistake, made in a copy.

The table is `mutants.toml`. An entry names a file, a text that occurs exactly once in it, what takes its place, and a
test that must fail then: a whole test file, or `path::test` where the file is slow. To add one, write the entry and run
`python -m tests.mutants SUBSTRING`, where the substring picks it by its file, its texts or its test.

Every test runs once in an unchanged copy first: one that fails there says nothing about a mutant. A mutant is `killed`
where its test fails, or does not end within ten minutes, and `SURVIVED` where it passes. The working tree is only read,
so an interrupted run leaves nothing behind. The exit code is 1 unless every mutant is killed.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from .table import ROOT, Mutant, read_mutants

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "lightning_logs")
MAPPED = ("analysis", "finetune", "configs")
"""Folders that pyproject.toml maps into the package."""

PRELOADED = ("lightning.pytorch.cli", "matplotlib.figure", "pytest", "scipy.stats", "sklearn.neighbors", "timm")
PRELOADED += ("torchmetrics", "torchvision", "transformers")
"""What most tests import: once here, for all of the processes that are forked."""

TIMEOUT = 600  # seconds


class Result(NamedTuple):
    """What became of a test: `passed`, `failed`, or what pytest said where it could not run it."""

    test: str
    mutant: Mutant | None
    state: str
    seconds: float


def copy_tree(folder: Path) -> Path:
    """A copy of the working tree, in which the mapped folders are found in the package, before any installed one."""
    root = folder / "copy"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    for name in MAPPED:
        (root / "bamboo" / name).symlink_to(Path("..") / name, target_is_directory=True)
    return root


def run_here(root: Path, test: str, log: Path) -> None:
    """Run a test with all imports from a copy, and end the process by pytest's exit code."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True  # it would outlive the change of a file
    sys.path[:] = [str(root), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("bamboo", "tests")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    signal.alarm(TIMEOUT)
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", test])))


def run_tests(jobs: Sequence[tuple[str, Mutant | None]], copies: Sequence[Path]) -> Iterator[Result]:
    """Run tests, each under a mutant or in an unchanged copy, as many at a time as there are copies."""
    fork, free, waiting = multiprocessing.get_context("fork"), [*copies], [*reversed(jobs)]
    running: dict[int, tuple[multiprocessing.process.BaseProcess, Path, str, Mutant | None, float]] = {}
    while waiting or running:
        while waiting and free:
            root, (test, mutant) = free.pop(), waiting.pop()
            if mutant:
                (root / mutant.file).write_text(mutant.mutated(), encoding="utf-8")
            process = fork.Process(target=run_here, args=(root, test, root.parent / "log"))
            process.start()
            running[process.sentinel] = process, root, test, mutant, time.perf_counter()
        for sentinel in wait([*running]):
            process, root, test, mutant, since = running.pop(sentinel)
            process.join()
            if mutant:
                shutil.copyfile(ROOT / mutant.file, root / mutant.file)
            states = {0: "passed", 1: "failed", 2: "failed", -signal.SIGALRM: "failed"}  # 2: it could not be imported
            state = states.get(process.exitcode or 0) or (root.parent / "log").read_text()
            free.append(root)
            yield Result(test, mutant, state, time.perf_counter() - since)


def run_all(mutants: Sequence[Mutant], workers: int = 1) -> int:
    """Run the mutants and print a line for each; how many are not killed."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_tree(Path(folder) / str(number)) for number in range(workers)]
        passed = set()
        for result in run_tests([(test, None) for test in dict.fromkeys(mutant.test for mutant in mutants)], copies):
            _print(result.state, result.seconds, f"unchanged: {result.test}")
            passed |= {result.test} if result.state == "passed" else set()
        sound = []
        for mutant in mutants:
            problem = mutant.problem() if mutant.test in passed else "its test does not pass without it"
            if problem:
                wrong += 1
                _print("BROKEN", 0.0, f"{mutant}: {problem}")
            else:
                sound.append((mutant.test, mutant))
        for result in run_tests(sound, copies):
            state = {"failed": "killed", "passed": "SURVIVED"}.get(result.state, result.state)
            wrong += state != "killed"
            _print(state, result.seconds, str(result.mutant))
    return wrong


def _print(state: str, seconds: float, what: str) -> None:
    print(f"{state:<10} {seconds:6.1f} s  {what}", flush=True)


def main() -> int:
    """Run the mutants that the command line picks; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="run the mutants that mention this in one of their fields")
    parser.add_argument("--workers", type=int, default=1, help="tests at a time, each in a copy of its own")
    options = parser.parse_args()
    mutants = [mutant for mutant in read_mutants() if any(options.only in field for field in mutant)]
    if not mutants:
        parser.error(f"no mutant mentions {options.only!r}")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for module in PRELOADED:
        importlib.import_module(module)
    wrong = run_all(mutants, options.workers)
    print(f"\n{len(mutants) - wrong} of {len(mutants)} mutants killed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
