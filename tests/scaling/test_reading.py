"""Runs read from tables and folders, and the verb on them."""

import csv
import json
import math
import shutil

import pytest

from bamboo.analysis.plots import STYLE
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.scaling import read_runs
from bamboo.shapes import Shape
from tests.runs import fit as bamboo_fit
from tests.runs import scalars


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    monkeypatch.setitem(STYLE, "savefig.dpi", 60)  # a third of the time


def write(path, rows, columns=("parameters", "data", "loss", "batch_size", "learning_rate", "seed", "name")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def refused(*args, capsys):
    assert main(list(map(str, args))) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("bamboo: error")]) == 1
    return error[-1]


def test_tables_are_read_whatever_their_data_are_called(tmp_path):
    rows = [("1e6", "2000", "3.5", "", "", "", "a"), ("2e6", "4000", "2.5", "64", "1e-3", "7", "b")]
    for name in ("data", "samples", "tokens"):
        columns = ("parameters", name, "loss", "batch_size", "learning_rate", "seed", "name")
        runs, skipped = read_runs([write(tmp_path / f"{name}.csv", rows, columns)])
        assert skipped == []
        assert runs["data"].tolist() == [2000, 4000]
        assert runs["compute"].tolist() == [6 * 1e6 * 2000, 6 * 2e6 * 4000]
        assert runs["batch_size"].isna().tolist() == [True, False]
        assert runs.loc[1, ["name", "learning_rate", "seed"]].tolist() == ["b", 1e-3, "7"]
    columns, rows = ("parameters", "samples", "tokens_per_sample", "loss"), [("1e6", "2000", "17", "3.5")]
    assert read_runs([write(tmp_path / "tokens.csv", rows, columns)])[0]["compute"].item() == 6 * 1e6 * 2000 * 17


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns parameters, data, loss: it has none"),
        ("parameters,loss\n1,2\n", "lacks the columns data"),
        ("parameters,data,loss\n", "holds no runs"),
        ("parameters,data,loss\n1,2,3\n1,2,x\n", "line 3: loss must be a positive, finite number, got 'x'"),
        ("parameters,data,loss\n1,2,-3\n", "line 2: loss must be a positive, finite number, got '-3'"),
        ("parameters,data,loss\n1,2,nan\n", "line 2: loss must be a positive, finite number, got 'nan'"),
        ("parameters,data,loss\n1,,3\n", "line 2: data must be a positive, finite number, got ''"),
        ("parameters,samples,loss\n1,2,3\n1,x,3\n", "line 3: samples must be a positive, finite number, got 'x'"),
        ("parameters,data,loss\n\n1,2\n", "line 3: loss must be a positive, finite number"),
        ("parameters,data,loss\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
        ("parameters,data,loss,compute\n1,2,3,0\n", "line 2: compute must be a positive, finite number"),
    ],
)
def test_a_bad_table_is_refused_in_one_line_that_names_the_place(text, message, tmp_path, capsys):
    (tmp_path / "runs.csv").write_text(text)
    error = refused("scaling", tmp_path / "runs.csv", "--out", tmp_path / "out", capsys=capsys)
    assert message in error
    assert "runs.csv" in error
    assert not (tmp_path / "out").exists()


def test_missing_and_binary_files_and_empty_folders_are_refused(tmp_path, capsys):
    (tmp_path / "image.csv").write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    for name, message in (("none.csv", "is missing"), ("image.csv", "no CSV"), ("empty", "holds neither")):
        assert message in refused("scaling", tmp_path / name, "--out", tmp_path / "out", capsys=capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch: 11 batches of 128 digits in steps of two."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.callbacks", "[]")
        assert bamboo_fit(*short, "--trainer.accumulate_grad_batches", "2") == 0
    return folder / "runs" / "quickstart" / "version_0"


def test_runs_of_bamboo_fit_are_read_as_they_were_trained(trained, tmp_path):
    runs, skipped = read_runs([trained.parent.parent])
    assert (len(runs), skipped) == (1, [])
    run = runs.iloc[0]
    assert run.batch_size == 256
    assert run.learning_rate == pytest.approx(4e-3)
    assert run.data == 6 * 256
    assert run.parameters == Shape(2, 32, 2).parameters
    assert run.compute == 6 * run.parameters * run.data * (16 + 1)  # of 64 patches 16 are visible, and a class token
    assert run.loss == pytest.approx(scalars(trained, "val/loss")[5])
    assert run.seed == 0
    with pytest.raises(InputError, match=r"logged no val/nothing: name one of .*val/loss"):
        read_runs([trained], loss="val/nothing")
    shutil.copytree(trained, tmp_path / "part")
    config = (trained / "config.yaml").read_text()
    (tmp_path / "part" / "config.yaml").write_text(config.replace("max_epochs: 1", "max_epochs: 2"))
    with pytest.raises(InputError, match=r"no finished run was found: .*part: it is not finished"):
        read_runs([tmp_path])
    (tmp_path / "part" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml is missing"):
        read_runs([tmp_path])


def test_compute_counts_the_tokens_of_a_sample(trained, tmp_path):
    six_n_d = 6 * Shape(2, 32, 2).parameters * 6 * 256
    assert read_runs([trained])[0]["compute"].item() == six_n_d * (1 + 64 // 4)  # the class token, a quarter visible
    shutil.copytree(trained, tmp_path / "text")
    config = (trained / "config.yaml").read_text()
    (tmp_path / "text" / "config.yaml").write_text(
        config.replace("batch_size: 128", "batch_size: 128\n    block_length: 96")
    )
    assert read_runs([tmp_path])[0]["compute"].item() == six_n_d * 96


def study_cell(trained, folder, objective, numbers):
    """A cell as `bamboo study` leaves it."""
    (folder / "train").mkdir(parents=True)
    shutil.copytree(trained, folder / "train" / "logs", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(trained / "checkpoints" / "last.ckpt", folder / "train")
    (folder / "result.json").write_text(json.dumps({"objective": objective, "seed": 3, "numbers": numbers}))


def test_cells_of_studies_are_read_and_failed_ones_named(trained, tmp_path):
    cells = tmp_path / "study" / "cells"
    study_cell(trained, cells / "mae-a", "mae", {"loss": 0.5, "accuracy": 0.9})
    study_cell(trained, cells / "supervised-a", "supervised", {"accuracy": 0.9})
    (cells / "mae-b").mkdir()
    (cells / "mae-b" / "failed.json").write_text(json.dumps({"reason": "the loss is not finite at step 3"}))
    runs, skipped = read_runs([tmp_path])
    columns = ["parameters", "data", "batch_size", "learning_rate", "loss", "seed"]
    assert runs[columns].to_numpy().tolist() == [[Shape(2, 32, 2).parameters, 6 * 256, 256, 4e-3, 0.5, 3]]
    assert len(skipped) == 2
    assert "not finite at step 3" in skipped[0]
    assert "supervised, has no masked loss" in skipped[1]
    study_cell(trained, cells / "other-a", "other", {"loss": 0.6})
    with pytest.raises(InputError, match="several objectives, mae, other"):
        read_runs([tmp_path])
    assert read_runs([cells / "mae-a"])[0]["loss"].tolist() == [0.5]
    (cells / "mae-a" / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json is cut short"):
        read_runs([cells / "mae-a"])


def law(n, d):
    return 0.3 + 15 / n**0.3 + 40 / d**0.4


def synthetic(path):
    """Best batches grow as D^0.264, best learning rates as B^0.8."""
    rows = []
    for size in (1e5, 3e5, 1e6, 3e6):
        for data in (1e5, 1e6, 1e7):
            best = 2 * data**0.264
            for batch in (16, 64, 256, 1024, 4096):
                for shift in (0.3, 0.8, 2.0):
                    loss = law(size, data) * (1 + 0.01 * math.log(batch / best) ** 2)
                    rate = 1e-4 * batch**0.8
                    rows.append((size, data, loss * (1 + 0.01 * math.log(shift) ** 2), batch, rate * shift, 0, ""))
    return write(path, rows)


def test_the_verb_writes_all_laws_and_prints_them_beside_published_ones(tmp_path, capsys):
    table = synthetic(tmp_path / "runs.csv")
    assert main(["scaling", str(table), "--out", str(tmp_path / "out"), "--resamples", "10"]) == 0
    out = capsys.readouterr().out
    for text in (
        "alpha",
        "0.264 [",
        "0.75 to 1 [",
        "Shuai et al. 2024",
        "known from",
        "12 of 180 runs fitted",
        "held out",
    ):
        assert text in out
    content = json.loads((tmp_path / "out" / "scaling.json").read_text())
    numbers = {name: entry["value"] for name, entry in content["numbers"].items()}
    assert numbers["best batch at fixed data: exponent in D"] == pytest.approx(0.264, abs=0.01)
    assert numbers["best learning rate: exponent in batch size"] == pytest.approx(0.8, abs=0.01)
    assert numbers["alpha"] == pytest.approx(0.3, abs=0.02)
    assert abs(content["held_out"][0]["error_percent"]) < 1
    names = ["best_batch_at_compute", "best_batch_at_data", "frontier", "held_out", "learning_rate", "loss"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.svg")) == names
    # What it wrote is a table of runs again.
    again = read_runs([tmp_path / "out" / "scaling.csv"])[0]
    assert again["loss"].tolist() == read_runs([table])[0]["loss"].tolist()


def test_the_verb_fits_what_it_can_and_says_what_the_rest_needs(tmp_path, capsys):
    rows = [
        (1e6, data, 2 + math.log(batch / data**0.264) ** 2, batch, "", "", "")
        for data in (1e5, 1e6, 1e7)
        for batch in (4, 16, 64, 256, 1024)
    ]
    table = write(tmp_path / "runs.csv", rows)
    assert main(["scaling", str(table), "--out", str(tmp_path / "out"), "--resamples", "10"]) == 0
    out = capsys.readouterr().out
    assert "no loss law: " in out
    assert "3 different numbers of parameters, got 1" in out
    assert "no best learning rate: " in out
    assert "best batch at fixed data: exponent in D" in out
    alone = write(tmp_path / "alone.csv", [row for row in rows if row[3] == 64])
    error = refused("scaling", alone, "--out", tmp_path / "none", capsys=capsys)
    assert "needs at least" in error
    assert not (tmp_path / "none").exists()
    assert "resamples must be at least 10" in refused(
        "scaling", table, "--out", tmp_path, "--resamples", 2, capsys=capsys
    )
