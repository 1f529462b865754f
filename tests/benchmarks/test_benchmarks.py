"""The report of `make bench`, with numbers that are made up."""

import json
import sys
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bamboo.shapes import find_shape
from bamboo.vision.mae import build_mae
from tests.benchmarks import __main__ as report
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
