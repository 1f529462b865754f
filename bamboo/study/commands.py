"""`bamboo study` and `bamboo study-report`."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bamboo.errors import InputError
from bamboo.fit.compose import find_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Results
    from .spec import Cell, Study


def study(
    *,
    out: Path,
    config: Path | None = None,
    data: str | None = None,
    axis: list[str] = [],  # noqa: B006 (never changed)
    seeds: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    cell: int | None = None,
    list: bool = False,
    dry_run: bool = False,
    report_only: bool = False,
    retry: bool = False,
    allow_unequal: bool = False,
) -> None:
    """Train, measure and compare every cell of a grid of shapes, objectives and seeds; what is finished stays so.

    Args:
        out: folder for the cells, the tables, the figures and report.html.
        config: the study; without one, that of a study that was begun in `out`.
        data: folder that the data of all objectives are read from.
        axis: a further axis and its values, as in `batch_size 64 128 256` or `pool token avg`; any key of the
            configuration by its path; without values half, once and twice what is configured. Several in a row.
        seeds: number of seeds, instead of the study's.
        workers: cells at a time on a CPU, instead of the study's; with GPUs there is one for each of them.
        threads: of each worker, instead of the study's; their number changes the last bits of results.
        cell: run this cell alone, without a report, as in a SLURM array.
        list: print the cells and their state, and run nothing.
        dry_run: print what the cells will cost, and run nothing.
        report_only: write the report of what is finished, and run nothing.
        retry: run failed cells again.
        allow_unequal: let shapes differ by more than 2 % in parameters.
    """
    from .runner import failures, load_stored, run_cells, store, waiting

    if config is None:
        found = load_stored(out)
        if data or axis or seeds or threads or allow_unequal:
            raise InputError("a study that was begun cannot be changed: give --config and another --out")
    else:
        found = _read(find_config(config), data, axis, seeds, threads, allow_unequal)
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    found = replace(found, workers=workers or found.workers)
    chosen = None if cell is None else found.cell(cell)
    if list:
        _print_cells(found, out)
    elif dry_run:
        _print_costs(found, out)
    elif report_only:
        _report(found, out)
    else:
        left = [one for one in waiting(found, out, retry) if chosen in (None, one)]
        _check(found, left, out)
        store(found, out)
        run_cells(found, left, out, found.workers, _devices(found))
        for name, reason in failures(found, out).items():
            print(f"failed: {name}: {reason}")
        if chosen is None:
            _report(found, out)


def study_report(studies: list[Path], *, out: Path) -> None:
    """Merge studies, run in parts or on several machines, into one report.

    Args:
        studies: folders of studies.
        out: folder for the tables, the figures and report.html.
    """
    from .results import merge_results

    _write(merge_results(studies), out)


def _read(
    path: Path, data: str | None, axis: list[str], seeds: int | None, threads: int | None, allow_unequal: bool
) -> "Study":
    from .axes import add_axes, change_configs
    from .reading import read_study

    for name, value in {"seeds": seeds, "threads": threads}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    found = read_study(path, allow_unequal)
    if seeds is not None:
        found = replace(found, seeds=tuple(range(seeds)))
    if data is not None:
        found = change_configs(found, "data.init_args.root", data)
        found = _count_classes(found)
    return add_axes(replace(found, threads=threads or found.threads), axis)


def _count_classes(found: "Study") -> "Study":
    """Fill in `num_classes: null` from the data."""
    from .axes import change_configs
    from .vision import open_data

    for one in found.objectives.values():
        for config in (one.config, one.then):
            if config and config["model"]["init_args"].get("num_classes", 0) is None:
                told = {
                    "class_path": config["data"]["class_path"],
                    "init_args": {"root": config["data"]["init_args"]["root"]},
                }
                return change_configs(found, "model.init_args.num_classes", open_data(told).num_classes)
    return found


def _check(found: "Study", left: "Sequence[Cell]", out: Path) -> None:
    """Build the models and find the data before anything is run, so that a mistake shows once and at once."""
    from .estimates import estimates

    if "???" in str(found.to_dict()):
        raise InputError("the study reads data of yours: give their folder with --data FOLDER")
    if left:
        estimates(found, left, out)


def _devices(found: "Study") -> list[str]:
    """GPUs, one worker each; none where training takes all of them, or there are none."""
    import torch

    if found.launch:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _print_cells(found: "Study", out: Path) -> None:
    from .cells import cell_folder, cell_state

    for one in found.cells():
        print(f"{one.number:>4}  {cell_state(cell_folder(out, one)):<8} {one.name}")


def _print_costs(found: "Study", out: Path) -> None:
    from bamboo.tables import table

    from .estimates import estimates

    if found.train_samples is None and "???" in str(found.to_dict()):
        raise InputError("the study reads data of yours: give their folder with --data FOLDER")
    costs = estimates(found, found.cells(), out)
    rows = [["cell", "", "parameters", "FLOPs", "memory", "time"]]
    for one in found.cells():
        cost = costs[one.name]
        spent = _time(cost.seconds) + (" " if cost.measured else "?")
        sizes = (f"{cost.parameters:,}", _scaled(cost.flops), f"{_scaled(cost.memory)}B", spent)
        rows.append([one.name, str(one.number), *sizes])
    total = sum(cost.seconds for cost in costs.values())
    print(table(rows))
    print(f"\n{len(costs)} cells, {_time(total)} of one worker, {_time(total / found.workers)} with {found.workers}.")
    print(COSTS_NOTE)


COSTS_NOTE = """\
Parameters are all that are trained, with decoder or head; FLOPs those of all training, forward and backward. Memory is
that of weights, gradients and moments; the activations of a step come on top. Times with a ? are guessed from the speed
of a matrix product on this machine, without evaluation; others are those of finished cells."""


def _scaled(value: float) -> str:
    """A number with a prefix of the SI: 3.2e12 is 3.2 T."""
    power = max(0, min(int(math.log10(max(value, 1)) // 3), 7))
    return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E', 'Z'][power]}"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _report(found: "Study", out: Path) -> None:
    from .results import read_results

    _write(read_results(found, out), out)


def _write(results: "Results", out: Path) -> None:
    from .claims import judge
    from .report import notes, write_report

    page = write_report(results, out)[0]
    print(*notes(results), sep="\n", end="\n" if notes(results) else "")
    for one in judge(results):
        ends = (
            "" if one.low is None else f" ({one.trend:+.3f} per doubling of depth, {one.low:+.3f} to {one.high:+.3f})"
        )
        print(f"{one.claim} [{one.objective}]: {one.verdict}{ends}")
    print(f"wrote {page}")
