"""A study from end to end: its cells, what happens when they fail or are killed, its tables and its report."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bamboo.analysis.profiles import Comparison
from bamboo.cli import main
from bamboo.errors import Diverged, InputError
from bamboo.files import write_json
from bamboo.study.changes import add_axes
from bamboo.study.folders import cell_folder, cell_state, failures, load_stored, store, waiting
from bamboo.study.report import write_report
from bamboo.study.results import NUMBERS, WHOLE, merge_results, read_results, write_tables
from bamboo.study.running import run_cells, run_locked
from bamboo.study.stages import launch, run_config
from tests.browser import open_page
from tests.runs import ROOT, load

from .tiny import MAE, SUPERVISED, TINY, rows, run_here, tiny, written

EXCESS = (
    *("excess", "excess_untrained", "excess_before_last", "excess_normed"),
    *("excess_visible", "excess_visible_untrained"),
)
TABLES = ("cells.csv", "layers.csv", "training.csv")
DYING = [
    {"class_path": "bamboo.callbacks.NonFiniteGuard"},
    {"class_path": "tests.interruption.InterruptBefore", "init_args": {"step": 2, "kill": True}},
]


def tables(folder):
    return {name: (folder / name).read_bytes() for name in TABLES}


def test_every_cell_is_trained_measured_and_in_the_tables(out):
    table = rows(out / "cells.csv")
    assert [row["cell"] for row in table] == [cell.name for cell in load_stored(out).cells()]
    assert {row["state"] for row in table} == {"done"}
    everywhere = ("similarity", "similarity_untrained", "effective_rank", "accuracy", "activation_bytes")
    for name in (*everywhere, "nearest_neighbours", "linear_probe", *EXCESS):
        assert all(np.isfinite(float(row[name])) for row in table), name
    for name in ("excess_finetuned", "loss"):
        assert [bool(row[name]) for row in table] == [row["objective"] == "mae" for row in table]
    assert {row["cell"] for row in rows(out / "costs.csv")} == {row["cell"] for row in table}


def test_every_number_can_be_traced_to_a_file_of_its_cell(out):
    for row in rows(out / "cells.csv"):
        told = json.loads((out / row["file"]).read_text())["numbers"]
        assert {name: float(row[name]) for name in NUMBERS if row.get(name)} == told
        profiles = {p.label: p for p in Comparison.load(out / "cells" / row["cell"] / "profile").profiles}
        last = profiles["trained, held-out, whole"].curve("token_similarity").mean[-1]
        assert float(row["similarity"]) == last
    layers = rows(out / "layers.csv")
    for cell in {row["cell"] for row in layers}:
        ours = [
            (f"{r['model']}, {r['samples']}, {r['length']}", r["measure"], r["layer"], r["mean"])
            for r in layers
            if r["cell"] == cell
        ]
        theirs = rows(out / "cells" / cell / "profile" / "profile.csv")
        probes = json.loads((out / "cells" / cell / "layers.json").read_text())
        assert ours == [
            *((r["model"], r["measure"], r["layer"], r["mean"]) for r in theirs),
            *((WHOLE, name, str(n), str(x)) for name in probes for n, x in enumerate(probes[name])),
        ]


def test_a_cell_can_be_run_again_by_the_configuration_that_it_left(out):
    cell = load_stored(out).cell(0)
    folder = cell_folder(out, cell)
    checkpoint = load(folder / "train" / "last.ckpt")
    assert checkpoint["global_step"] == 4
    assert load(folder / "train" / "start.ckpt")["global_step"] == 0
    config = run_config(load_stored(out), cell, folder, "train")
    assert config["model"]["init_args"]["shape"]["width"] == 64
    assert config["seed_everything"] == config["data"]["init_args"]["seed"] == 0


def test_finished_cells_are_never_run_again(out, tmp_path):
    study = load_stored(out)
    assert waiting(study, out) == []
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result.json")}
    run_locked(study, study.cell(0), out)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_cells_one_by_one_end_in_the_same_tables(out, tmp_path, capsys):
    path = written(tmp_path)
    other = tmp_path / "out"
    words = ["study", "--config", str(path), "--out", str(other)]
    assert main([*words, "--cell", "1"]) == 0  # in a worker, as on a cluster
    assert main([*words, "--list"]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["waiting", "done", "waiting", "waiting"]
    study = load_stored(other)
    for cell in reversed(study.cells()):
        run_locked(study, cell, other)
    assert main([*words[:1], "--out", str(other), "--report-only"]) == 0
    assert main(["study-report", str(other), "--out", str(tmp_path / "merged")]) == 0
    assert "supervision smooths more, the deeper the network" in capsys.readouterr().out
    assert tables(other) == tables(out)


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_in_the_same_tables(out, tmp_path):
    path, other = written(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "bamboo", "study", "--config", str(path), "--out", str(other), "--workers", "1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(other.glob("cells/*/train/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    pause = random.Random(0).uniform(0, 3)
    print(f"killed {pause:.2f} s after the first checkpoint")
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = load_stored(other)
    interrupted = waiting(study, other)
    assert interrupted  # the worker has no time to go on without its parent
    for cell in interrupted:  # and again, in the middle of each: a checkpoint is all that is left of its training
        folder = cell_folder(other, cell)
        run_locked(study, cell, other)
        if cell.number % 3 == 0:
            for name in ("result.json", "train/done.json", "training.json"):
                (folder / name).unlink()
            shutil.rmtree(folder / "profile")
            run_locked(study, cell, other)
    write_tables(read_results(study, other), other)
    assert tables(other) == tables(out)


@pytest.mark.slow
def test_a_failed_cell_is_reported_does_not_stop_the_others_and_is_tried_again_only_if_asked(tmp_path, capsys):
    settings = SUPERVISED["set"]
    hot = {"model": {"init_args": {**settings["model"]["init_args"], "recipe": {"base_lr": 1e30, "warmup_share": 0.0}}}}
    objectives = {
        "hot": {**SUPERVISED, "set": {**settings, **hot}},
        "dying": {**SUPERVISED, "set": {**settings, "trainer": {**settings["trainer"], "callbacks": DYING}}},
        "good": SUPERVISED,
    }
    study, out = tiny(tmp_path, objectives=objectives, seeds=1, shapes=TINY["shapes"][:1]), tmp_path / "out"
    store(study, out)
    run_cells(study, waiting(study, out), out, workers=1)
    states = {cell.objective: cell_state(cell_folder(out, cell)) for cell in study.cells()}
    assert states == {"hot": "failed", "dying": "failed", "good": "done"}
    assert [one.diverged for one in read_results(study, out).outcomes] == [True, False, False]
    reasons = failures(study, out)
    assert "the loss is not finite at step" in reasons["hot-2x64-seed0"]
    assert "SIGKILL, most often for want of memory" in reasons["dying-2x64-seed0"]
    assert waiting(study, out) == []
    assert [cell.objective for cell in waiting(study, out, retry=True)] == ["hot", "dying"]
    write_report(read_results(study, out), out)
    assert [row["reason"] for row in rows(out / "cells.csv")] == [*reasons.values(), ""]
    page = (out / "report.html").read_text()
    assert "hot-2x64-seed0 diverged and is in no mean, but in the claims" in page
    assert "dying-2x64-seed0 failed and is in no mean" in page
    assert "0 of 1" in page


def test_parts_of_a_study_are_merged(out, tmp_path):
    """As two machines would leave them: one objective each."""
    parts = []
    for name, objective in TINY["objectives"].items():
        part = tmp_path / name
        store(tiny(tmp_path, objectives={name: objective}), part)
        for folder in out.glob(f"cells/{name}-*"):
            shutil.copytree(folder, part / "cells" / folder.name)
        parts.append(part)
    write_tables(merge_results(parts), tmp_path / "merged")
    assert tables(tmp_path / "merged") == tables(out)
    other = tmp_path / "other"
    shutil.copytree(parts[1], other)
    path = other / "cells" / "supervised-2x64-seed0" / "result.json"
    told = json.loads(path.read_text())
    told["numbers"]["accuracy"] += 0.1
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match="cell supervised-2x64-seed0 ended differently: accuracy is"):
        merge_results([*parts, other])


def test_different_studies_are_not_merged(tmp_path):
    store(tiny(tmp_path), tmp_path / "one")
    for name, changes, message in (
        ("two", {"threads": 2}, "threads is 2, not 1"),
        ("three", {"name": "other"}, "name is other, not tiny"),
        ("four", {"objectives": {"mae": {**MAE, "kind": "supervised"}}}, "objective mae differs"),
    ):
        store(tiny(tmp_path, **changes), tmp_path / name)
        with pytest.raises(InputError, match=message):
            merge_results([tmp_path / "one", tmp_path / name])
    for name, rate in (("one", 1e-3), ("five", 2e-3)):
        store(tiny(tmp_path), tmp_path / name)
        write_json(tmp_path / name / "tuning" / "mae-2x64.json", {"chosen": {"base_lr": rate}})
    with pytest.raises(
        InputError, match=r"five/tuning/mae-2x64.json chose .*0.002}, and .*0.001} was chosen elsewhere"
    ):
        merge_results([tmp_path / "one", tmp_path / "five"])
    with pytest.raises(InputError, match="holds no study"):
        merge_results([tmp_path / "one", tmp_path / "none"])


@pytest.mark.slow
def test_an_axis_is_trained_by_its_values_and_has_lines_of_its_own(tmp_path):
    study = tiny(tmp_path, objectives={"supervised": SUPERVISED}, seeds=1)
    study = add_axes(study, ["pool", "token", "avg"])
    out = run_here(study, tmp_path / "out")
    pools = [load(p)["hyper_parameters"]["pool"] for p in sorted(out.glob("cells/*2x64*/train/last.ckpt"))]
    assert pools == ["avg", "token"]
    results = read_results(study, out)
    assert [series.label for series in results.series] == ["supervised, pool token", "supervised, pool avg"]
    write_report(results, out)
    assert "supervised, pool avg" in (out / "similarity_over_depth.svg").read_text()
    assert [row["pool"] for row in rows(out / "cells.csv")] == ["token"] * 2 + ["avg"] * 2


@pytest.mark.slow
def test_training_can_be_launched_by_a_command(tmp_path):
    launch = [sys.executable, "-m", "bamboo"]
    study = tiny(tmp_path, objectives={"supervised": SUPERVISED}, seeds=1, shapes=TINY["shapes"][:1], launch=launch)
    out = run_here(study, tmp_path / "out")
    assert [one.state for one in read_results(study, out).outcomes] == ["done"]
    broken = tiny(tmp_path, objectives={"supervised": SUPERVISED}, seeds=1, launch=["false"])
    run_here(broken, tmp_path / "broken")
    assert all("ended with exit code 1" in reason for reason in failures(broken, tmp_path / "broken").values())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("bamboo: error: the loss is not finite at step 3: the first tensor that is not is the loss itself", Diverged),
        (
            "bamboo: error: the loss is not finite at step 3: the first tensor that is not is the batch's 'x'",
            RuntimeError,
        ),
        ("Killed", RuntimeError),
    ],
)
def test_a_launched_run_that_diverged_is_told_from_one_that_failed_otherwise(tmp_path, line, kind):
    diverged = "bamboo: error: a gradient is not finite at step 1: the gradient of x\n"  # of an earlier try
    (tmp_path / "log.txt").write_text(diverged)
    with (tmp_path / "log.txt").open("a") as log, pytest.raises(kind) as error:
        launch([sys.executable, "-c", f"import sys; print({line!r}, file=sys.stderr); sys.exit(2)"], log)
    assert type(error.value) is kind


def test_the_report_holds_its_parts_and_opens_in_a_browser_without_errors(out, tmp_path):
    page = (out / "report.html").read_text()
    for heading in (
        "What the numbers say of the claims",
        "Similarity over depth",
        "Similarity along training, against optimizer steps",
        "Similarity along training, against training loss",
        "Similarity along training, against training FLOPs",
        "Last-layer similarity against depth",
        "Accuracy against depth",
        "Reconstructions of the same images",
        "Similarity maps of the same image, 1",
        "All cells",
        "Cost against depth",
    ):
        assert heading in page
    opened = open_page(out / "report.html", tmp_path)
    assert opened.images == [True] * len(list(out.glob("*.svg")))
    assert len(opened.images) == len(list(out.glob("*.png")))
    assert not opened.console
    assert not opened.requests
