"""The report of `make bench`, with numbers that are made up."""

import json
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bamboo.shapes import Shape, find_shape
from bamboo.vision.mae import build_mae
from tests.benchmarks import __main__ as report
from tests.benchmarks import quality
from tests.benchmarks.bench_training import PATCHES, step_flops

pytestmark = pytest.mark.slow


@pytest.fixture
def parts(monkeypatch):
    """Benchmarks that take no time: of two parts, one of which breaks; the others are missing."""

    def bench_data():
        return {
            "bamboo_images_per_s": 400.0,
            "bamboo_repeat2_images_per_s": 420.0,
            "pil_images_per_s": 200.0,
            "bamboo_over_pil": 2.0,
            "bamboo_repeat2_over_pil": 2.1,
        }

    def bench_training():
        raise RuntimeError("out of memory")

    for name, function in {"bench_data": bench_data, "bench_training": bench_training}.items():
        module = ModuleType(f"tests.benchmarks.{name}")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: sys.modules.get(name))
    monkeypatch.setattr(report, "PARTS", ("training", "data", "probing"))


def test_the_report_says_what_is_met_and_what_is_missing(parts, tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    report.main(["--out", str(out)])
    printed = capsys.readouterr().out.splitlines()
    images, repeated = (line.split() for line in printed if line.startswith("data: images/s"))
    assert images == ["data:", "images/s", "400", "200", "2", ">=", "1.8", "met"]
    assert repeated[-6:] == ["200", "2.1", ">=", "2.5", "not", "met"]
    written = json.loads(out.read_text())
    assert written["results"]["data"]["bamboo_over_pil"] == 2.0
    assert written["skipped"]["training"] == "failed: RuntimeError: out of memory"
    assert written["skipped"]["probing"] == "there is no such benchmark yet"


def test_one_part_runs_alone(parts, tmp_path):
    report.main(["--only", "data", "--out", str(tmp_path / "bench.json")])
    written = json.loads((tmp_path / "bench.json").read_text())
    assert list(written["results"]) == ["data"]
    assert not written["skipped"]


def test_a_cost_is_met_where_it_is_low():
    line = report.Line("cost", "cost", target=1.05, at_most=True)
    assert line.verdict({"cost": 1.02}) == "met"
    assert line.verdict({"cost": 1.10}) == "not met"


def test_flops_of_a_step_are_those_that_are_counted():
    with torch.device("meta"):
        model = build_mae("vit-small")
        images, noise = torch.empty(1, 3, *PATCHES.image_size), torch.empty(1, PATCHES.count)
        with FlopCounterMode(display=False) as counter:
            model(images, noise).loss.backward()
    # The patch embedding passes no gradient on to the pixels.
    assert counter.get_total_flops() == pytest.approx(step_flops(find_shape("vit-small")), rel=0.01)


def test_time_to_quality_trains_each_run_once_and_reports_each_seed(image_root, tmp_path, monkeypatch, capsys):
    for name, value in {"BATCH": 8, "HELD_OUT": 16, "BANK": 16, "RATES": (1e-3,), "DECODER": Shape(1, 16, 1)}.items():
        monkeypatch.setattr(quality, name, value)
    out = tmp_path / "out"
    command = ["quality", "--data", str(image_root), "--out", str(out), "--shapes", "2,16,1", "--steps", "24"]
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "2", "--rounds", "1", "--times", "0.2"])
    quality.main()
    table = pd.read_csv(out / "quality.csv")
    assert [*table["quality"]] == ["loss", "neighbours"] * 2
    row = table.iloc[0]
    reference = pd.read_csv(out / "2x16" / "reference-0.001-24-seed0.csv")
    assert row["goal"] == reference["loss"].iloc[-1]
    seconds = json.loads((out / "2x16" / "seconds.json").read_text())
    expected = seconds["reference"] * 24 / (seconds[row["fast"]] * row["steps"])
    assert row["times_faster_than_reference"] == pytest.approx(expected, rel=1e-6)
    capsys.readouterr()
    quality.main()
    assert "Run(" not in capsys.readouterr().out  # nothing is trained again
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "quality.csv"))


def test_the_step_at_which_a_goal_is_reached_lies_between_looks():
    table = pd.DataFrame({"step": [10, 20, 30], "loss": [3.0, 2.0, 1.0], "neighbours": [np.nan, 0.2, 0.4]})
    assert quality.reached(table, "loss", 1.25) == pytest.approx(27.5)
    assert quality.reached(table, "neighbours", 0.3) == pytest.approx(25)
    assert quality.reached(table, "loss", 5.0) == 10
    assert np.isnan(quality.reached(table, "loss", 0.5))
