"""`make mutants`: does a test fail where the software is wrong? Each mutant is one such mistake, made in a copy.

The table is `mutants.toml`. An entry names a file, a text that occurs exactly once in it, what takes its place, and a
test that must fail then: a whole test file, or `path::test` where the file is slow. To add one, write the entry and run
`python -m tests.mutants SUBSTRING`, where the substring picks it by its file, its texts or its test.

Every test runs once in an unchanged copy first: one that fails there says nothing about a mutant. A mutant is `killed`
where its test fails, or does not end within ten minutes, and `SURVIVED` where it passes. The working tree is only read,
so an interrupted run leaves nothing behind. The exit code is 1 unless every mutant is killed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from .table import ROOT, Mutant, read_mutants

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info", "lightning_logs")
MAPPED = ("analysis", "finetune", "configs")
"""Folders that pyproject.toml maps into the package."""

TIMEOUT = 600  # seconds


class Outcome(NamedTuple):
    """What became of a test: `passed`, `failed`, or `broken` where pytest could not run it."""

    state: str
    seconds: float
    output: str


def copy_tree(folder: Path) -> Path:
    """A copy of the working tree in which every import resolves to the copy: see `environment`."""
    root = folder / "bamboo-copy"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    for name in MAPPED:  # found in the package itself, before the editable install is asked
        (root / "bamboo" / name).symlink_to(Path("..") / name, target_is_directory=True)
    return root


def environment(root: Path) -> dict[str, str]:
    """Variables under which Python imports from a copy, and keeps no byte code of a file that will change back."""
    return {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def run(root: Path, test: str) -> Outcome:
    """Run a test in a copy."""
    since = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    try:
        done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=TIMEOUT)
        state, output = (
            {0: "passed", 1: "failed", 2: "failed"}.get(done.returncode, "broken"),
            done.stdout + done.stderr,
        )
    except subprocess.TimeoutExpired:
        state, output = "failed", f"no end after {TIMEOUT} s"
    return Outcome(state, time.perf_counter() - since, output)


@contextmanager
def changed(root: Path, mutant: Mutant) -> Iterator[None]:
    """A mutant in a copy; the file is as before at the end."""
    path, text = root / mutant.file, mutant.mutated()
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def verdict(root: Path, mutant: Mutant, unchanged: dict[str, Outcome]) -> tuple[str, float]:
    """`killed`, or what else became of a mutant, and the seconds that it took."""
    if unchanged[mutant.test].state != "passed":
        return "TEST FAILS UNCHANGED", 0.0
    try:
        with changed(root, mutant):
            outcome = run(root, mutant.test)
    except ValueError as error:
        return str(error), 0.0
    return {"failed": "killed", "passed": "SURVIVED"}.get(outcome.state, outcome.output), outcome.seconds


def run_all(mutants: list[Mutant], workers: int) -> int:
    """Run the mutants, print a line for each; how many are not killed."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            copies.put(copy_tree(Path(folder) / str(number)))

        def in_a_copy(function, *args):
            root = copies.get()
            try:
                return function(root, *args)
            finally:
                copies.put(root)

        tests = list(dict.fromkeys(mutant.test for mutant in mutants))
        unchanged = {}
        for test, outcome in zip(tests, pool.map(lambda test: in_a_copy(run, test), tests), strict=True):
            unchanged[test] = outcome
            print(f"{outcome.state:<10} {outcome.seconds:6.1f} s  unchanged: {test}", flush=True)
            if outcome.state != "passed":
                print(outcome.output)
        results = pool.map(lambda mutant: in_a_copy(verdict, mutant, unchanged), mutants)
        for mutant, (state, seconds) in zip(mutants, results, strict=True):
            wrong += state != "killed"
            change = f"{' '.join(mutant.old.split())}  ->  {' '.join(mutant.new.split())}"
            print(f"{state:<10} {seconds:6.1f} s  {mutant.file}: {change}  [{mutant.test}]", flush=True)
    return wrong


def main() -> int:
    """Run the mutants that the command line picks; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="?", default="", help="run the mutants that mention this in one of their fields")
    parser.add_argument("--workers", type=int, default=1, help="mutants at a time, each in a copy of its own")
    options = parser.parse_args()
    mutants = [mutant for mutant in read_mutants() if any(options.only in field for field in mutant)]
    if not mutants:
        parser.error(f"no mutant mentions {options.only!r}")
    wrong = run_all(mutants, options.workers)
    print(f"\n{len(mutants) - wrong} of {len(mutants)} mutants killed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
