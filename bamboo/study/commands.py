"""`bamboo study` and `bamboo study-report`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bamboo.errors import InputError
from bamboo.fit.compose import find_config

if TYPE_CHECKING:
    from .results import Results
    from .spec import Study


ROOT = "data.init_args.root"


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

    In a folder that holds a study already, seeds, shapes, objectives and values of axes are added to it.

    Args:
        out: folder for the cells, the tables, the figures and report.html.
        config: the study; without one, that of a study that was begun in `out`.
        data: folder that the data of all objectives are read from.
        axis: a further axis and its values, as in `batch_size 64 128 256` or `pool token avg`; any key of the
            configuration by its path; without values half, once and twice what is configured. Several in a row.
        seeds: number of seeds, instead of the study's.
        workers: cells at a time, which share the GPUs; by default one for each GPU, or without GPUs those of
            the study.
        threads: of each worker, instead of the study's; their number changes the last bits of results.
        cell: run this cell alone, without a report, as in a SLURM array.
        list: print the cells and their state, and run nothing.
        dry_run: print what differs between the objectives and what the cells will cost, and run nothing.
        report_only: write the report of what is finished, and run nothing.
        retry: run failed cells again.
        allow_unequal: let shapes differ by more than 2 % in what they are to have in common.
    """
    from bamboo.files import write_json

    from .changes import additions
    from .folders import DIFFERENCES, STUDY, cell_folder, cell_state, extended, failures, load_stored, store, waiting
    from .results import read_results
    from .running import run_cells
    from .spec import check

    if config is None:
        if data or threads or allow_unequal:
            raise InputError("a study that was begun keeps its data and settings: give --config and another --out")
        plan = _with_grid(load_stored(out), axis, seeds)
    else:
        plan = _read(find_config(config), data, axis, seeds, threads, allow_unequal)
    plan = extended(plan, out)
    if (out / STUDY).is_file() and (added := additions(load_stored(out), plan)):
        print(f"added to {out}: {'; '.join(added)}")
    if workers is not None:
        plan = check(replace(plan, workers=workers))
    chosen = None if cell is None else plan.cell(cell)
    if list:
        for each in plan.cells():
            print(f"{each.number:>4}  {cell_state(cell_folder(out, each)):<8} {each.name}")
    elif report_only:
        _write_report(read_results(plan, out), out)
    elif "???" in str(plan.to_dict()) and (plan.train_samples is None or not dry_run):
        raise InputError("the study reads data of yours: give their folder with --data FOLDER")
    elif dry_run:
        _print_costs(plan, out)
    else:
        left = [each for each in waiting(plan, out, retry) if chosen in (None, each)]
        if left:  # builds the models and finds the data, so that a mistake shows once and before anything runs
            from .arms import check_arms, differences, show
            from .estimates import estimates

            estimates(plan, left, out)
            differing = differences(plan)
            check_arms(plan, differing)
            write_json(out / DIFFERENCES, {"table": show(plan, differing)})
        store(plan, out)
        run_cells(plan, left, out, workers)
        for name, reason in failures(plan, out).items():
            print(f"failed: {name}: {reason}")
        if chosen is None:
            _write_report(read_results(plan, out), out)


def study_report(studies: list[Path], *, out: Path) -> None:
    """Merge studies, run in parts or on several machines, into one report.

    Args:
        studies: folders of studies.
        out: folder for the tables, the figures and report.html.
    """
    from .results import merge_results

    _write_report(merge_results(studies), out)


def _read(
    path: Path, data: str | None, axis: list[str], seeds: int | None, threads: int | None, allow_unequal: bool
) -> "Study":
    from .changes import set_everywhere
    from .reading import read_study

    plan = read_study(path, allow_unequal)
    if threads is not None:
        plan = replace(plan, threads=threads)
    if data is not None:
        if not any(plan.stage_of(objective, ROOT) for objective in plan.objectives):
            raise InputError("--data: this study reads no folder")
        plan = _count_classes(set_everywhere(plan, ROOT, data))
    return _with_grid(plan, axis, seeds)


def _with_grid(plan: "Study", axis: list[str], seeds: int | None) -> "Study":
    from .changes import add_axes

    return add_axes(plan if seeds is None else replace(plan, seeds=[*range(seeds)]), axis)


def _count_classes(plan: "Study") -> "Study":
    """Fill in `num_classes: null` from the data."""
    from .changes import set_everywhere
    from .vision import open_data

    for objective in plan.objectives.values():
        for config in (objective.config, objective.then):
            if config and config["model"]["init_args"].get("num_classes", 0) is None:
                root = {"root": config["data"]["init_args"]["root"]}
                data = open_data({"class_path": config["data"]["class_path"], "init_args": root})
                return set_everywhere(plan, "model.init_args.num_classes", data.num_classes)
    return plan


def _print_costs(plan: "Study", out: Path) -> None:
    from bamboo.tables import table

    from .arms import check_arms, differences, show
    from .estimates import NOTE, estimates

    costs = estimates(plan, plan.cells(), out)
    if differing := differences(plan):
        print(table(show(plan, differing)), end="\n\n")
    rows = [["cell", "", "parameters", "FLOPs", "memory", "time"]]
    for each in plan.cells():
        cost = costs[each.name]
        spent = _time(cost.seconds) + (" " if cost.measured else "?")
        sizes = (f"{cost.parameters:,}", _scaled(cost.flops), f"{_scaled(cost.memory)}B", spent)
        rows.append([each.name, str(each.number), *sizes])
    total = sum(cost.seconds for cost in costs.values())
    print(table(rows))
    print(f"\n{len(costs)} cells, {_time(total)} of one worker, {_time(total / plan.workers)} with {plan.workers}.")
    print(NOTE)
    check_arms(plan, differing)


def _scaled(value: float) -> str:
    """A number with a prefix of the SI: 3.2e12 is 3.2 T; where it is not known, a question mark."""
    if math.isnan(value):
        return "?"
    power = 0
    while value >= 1000 and power < 7:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {' kMGTPEZ'[power].strip()}"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _write_report(results: "Results", out: Path) -> None:
    from .judging import judge
    from .report import notes, write_report

    page, *_ = write_report(results, out)
    for note in notes(results):
        print(note)
    for judgement in judge(results):
        print(judgement)
    print(f"wrote {page}")
