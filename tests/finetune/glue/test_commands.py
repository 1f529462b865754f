"""`bamboo glue` and `bamboo glue-compare` as they are typed."""

import csv
import json
import math
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bamboo.analysis.model_sources import name_of
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.glue.comparison import differences
from bamboo.finetune.glue.metrics import majority_baseline
from bamboo.finetune.glue.scores import COLUMNS, Scores, duration, markdown, markdown_table, write_scores
from bamboo.finetune.glue.submission import FILES
from bamboo.finetune.glue.tasks import DIAGNOSTIC, EIGHT, TASKS
from tests.finetune.glue.tiny import write_encoder


@pytest.fixture(scope="module")
def run(encoder, data, tmp_path_factory):
    """A function that types `bamboo glue` with small sizes."""
    folder = tmp_path_factory.mktemp("runs")

    def glue(name, *words, source=encoder):
        sizes = ["--max-length", "64", "--epochs", "1", "--lr", "1e-3", "--batch-size", "16"]
        sizes = [] if "--search" in words and "--from-mnli" not in words else sizes
        out = folder / name
        return main(["glue", str(source), "--data", str(data), "--out", str(out), *sizes, *words]), out

    return glue


@pytest.fixture(scope="module")
def small():
    """A benchmark whose test sets have as many rows as the tiny data."""
    with pytest.MonkeyPatch.context() as patch:
        for task in (*TASKS.values(), DIAGNOSTIC):
            for split in task.test_splits:
                patch.setitem(task.rows, split, 10)
        yield


@pytest.fixture(scope="module")
def whole(run, small, tmp_path_factory):
    submission = tmp_path_factory.mktemp("submission")
    code, out = run("whole", "--tasks", "all", "wnli", "--seeds", "3", "--submission", str(submission))
    assert code == 0
    return out, submission


def read(out):
    return json.loads((out / "scores.json").read_text())


def test_all_files_hold_the_tasks_and_the_average_of_the_eight(whole):
    out, _ = whole
    content, medians = read(out), {}
    for name in TASKS:
        cells = [json.loads((out / f"cells/{name}-seed{seed}.json").read_text()) for seed in range(3)]
        scores = [math.nan if cell["score"] is None else cell["score"] for cell in cells]
        medians[name] = float(np.median(scores))
        rows = [row for row in content["values"] if row["task"] == name and row["metric"] == "score"]
        assert [(row["seed"], row["value"]) for row in rows] == [(cell["seed"], cell["score"]) for cell in cells]
        assert {(row["train"], row["dev"]) for row in rows} == {(32, 48 if name == "mnli" else 24)}
    assert content["missing"] == []
    mean = np.mean([medians[name] for name in EIGHT])
    assert content["average"] == (None if math.isnan(mean) else pytest.approx(mean))
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == [name for name in (*EIGHT, "wnli") for _ in metrics_of(name)]
    page = (out / "scores.md").read_text()
    assert all(TASKS[name].title in page for name in EIGHT)
    assert "Average over the eight tasks" in page
    assert Image.open(out / "scores.png").width > 300
    assert (out / "scores.svg").read_text().startswith("<?xml")


def metrics_of(name):
    return [(metric, split) for split in TASKS[name].eval_splits for metric in TASKS[name].metrics]


def test_the_submission_holds_the_seed_with_the_median_score(whole):
    out, folder = whole
    files = zipfile.ZipFile(folder / "submission.zip")
    assert set(files.namelist()) == set(FILES)
    assert len(list((out / "predictions").iterdir())) == len(TASKS)  # of the chosen seed alone
    scores = [json.loads((out / f"cells/rte-seed{seed}.json").read_text())["score"] for seed in range(3)]
    median = int(np.argsort(scores, kind="stable")[1])
    expected = json.loads((out / f"predictions/rte-seed{median}.json").read_text())["test"]
    words = ("entailment", "not_entailment")
    lines = [f"{index}\t{words[value]}" for index, value in zip(expected["ids"], expected["predictions"], strict=True)]
    assert files.read("RTE.tsv").decode().splitlines() == ["index\tprediction", *lines]


def test_a_submission_that_is_asked_for_later_trains_nothing(whole, run, tmp_path, monkeypatch):
    from bamboo.finetune.glue import sweep

    out, folder = whole
    monkeypatch.setattr(sweep, "fine_tune", lambda *_: pytest.fail("it was run again"))
    for path in (out / "predictions").glob("cola*"):
        path.unlink()
    words = ["--tasks", "all", "wnli", "--seeds", "3", "--submission", str(tmp_path)]
    assert run("whole", *words)[0] == 0
    assert (tmp_path / "submission.zip").read_bytes() == (folder / "submission.zip").read_bytes()


def test_a_submission_lacking_a_task_or_a_set_is_refused_before_anything_runs(run, small, data, tmp_path, capsys):
    submission = ["--submission", str(tmp_path / "zip"), "--seeds", "1"]
    code, out = run("lacking", *submission)
    assert code == 2
    assert "needs all files, and WNLI.tsv is of wnli: give --tasks all wnli" in capsys.readouterr().err
    for name in TASKS:
        (tmp_path / "glue").mkdir(exist_ok=True)
        (tmp_path / "glue" / name).symlink_to(data / name)
    words = ["--data", str(tmp_path / "glue"), "--tasks", "all", "wnli"]
    assert run("lacking", *submission, *words)[0] == 2
    assert "no folder diagnostic/ or ax/ there" in capsys.readouterr().err
    (tmp_path / "glue" / "ax").mkdir()
    (tmp_path / "glue" / "ax" / "test.jsonl").write_text('{"premise": "a"}\n')
    assert run("lacking", *submission, *words)[0] == 2
    assert "test.jsonl:1: no column 'hypothesis'" in capsys.readouterr().err
    assert not out.exists()


def test_the_same_command_again_runs_nothing_and_another_is_refused(whole, run, capsys, monkeypatch):
    from bamboo.finetune.glue import sweep

    monkeypatch.setattr(sweep, "fine_tune", lambda *_: pytest.fail("it was run again"))
    before = read(whole[0])
    assert run("whole", "--tasks", "all", "wnli", "--seeds", "3")[0] == 0
    assert read(whole[0]) == before
    assert run("whole", "--seeds", "3", "--dropout", "0.2")[0] == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds scores with dropout 0.1, and now dropout is 0.2: give another --out" in error


def test_a_missing_task_leaves_no_average_and_is_named(run, capsys):
    code, out = run("few", "--tasks", "cola", "wnli", "--seeds", "1")
    assert code == 0
    printed = capsys.readouterr().out
    assert "No average over the eight tasks: SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE missing." in printed
    assert read(out)["average"] is None
    assert list(dict.fromkeys(row["task"] for row in read(out)["values"])) == ["cola", "wnli"]


def test_the_majority_baseline_is_that_of_the_data(whole, data):
    from bamboo.finetune.glue.reading import read_split

    rows = [row for row in read(whole[0])["values"] if row["task"] == "mrpc" and row["seed"] == 0]
    train, dev = (read_split(TASKS["mrpc"], data, split).labels for split in ("train", "dev"))
    expected = majority_baseline(TASKS["mrpc"], train, dev)
    expected["score"] = (expected["f1"] + expected["accuracy"]) / 2
    assert {row["metric"]: row["majority"] for row in rows} == pytest.approx(expected)


def test_two_encoders_are_set_side_by_side(whole, run, tmp_path, capsys):
    other = write_encoder(tmp_path / "modern", "modernbert")
    code, out = run("modern", "--tasks", "cola", "sst2", "--seeds", "3", source=other)
    assert code == 0
    capsys.readouterr()
    assert main(["glue-compare", str(whole[0]), str(out), "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert "| CoLA" in printed
    assert "Welch" in printed
    assert "No average over the eight tasks: MRPC, STS-B, QQP, MNLI, QNLI, RTE missing in one of the two." in printed
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == ["comparison.csv", "comparison.md", "comparison.png", "comparison.svg"]
    assert main(["glue-compare", str(whole[0]), str(whole[0])]) == 0
    same = capsys.readouterr().out
    assert "differs |" not in same
    assert "| average" in same
    header, rule = same.splitlines()[:2]
    assert header.split(" | ")[2:4] == [str(whole[0])] * 2  # a column for each, also under one name
    assert rule.count("|") == header.count("|") == 9


def scored(name, values, train=10):
    rows = [
        (name, metric, seed, value, 0.5, train, 5, 3.0, "")
        for seed, value in enumerate(values)
        for metric in (*TASKS[name].metrics, "score")
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_scores_survive_their_file_also_where_one_is_not_defined(tmp_path):
    values = pd.concat([scored("cola", [0.1, 0.3]), scored("stsb", [math.nan, 0.5])], ignore_index=True)
    scores = Scores("tiny", values)
    write_scores(scores, tmp_path)
    again = Scores.read(tmp_path)
    pd.testing.assert_frame_equal(again.values, values)
    assert math.isnan(again.summary().loc[("stsb", "score"), "median"])
    assert "undefined" in markdown(again)
    assert "NaN" not in (tmp_path / "scores.json").read_text()


def test_scores_on_other_examples_are_not_compared():
    one, two = (Scores("x", scored("cola", [0.1, 0.2], train)) for train in (10, 11))
    with pytest.raises(InputError, match="only scores on the same examples can be compared"):
        differences(one, two)


def test_a_table_is_aligned_markdown():
    text = markdown_table([("task", "metric", "median"), ("CoLA", "mcc", "5.0"), ("MRPC", "f1", "81.25")])
    assert text.splitlines() == [
        "| task | metric | median |",
        "|------|--------|-------:|",
        "| CoLA | mcc    |    5.0 |",
        "| MRPC | f1     |  81.25 |",
    ]


def test_an_encoder_is_called_after_its_run():
    assert name_of("runs/text_corpus/version_0/checkpoints/last.ckpt") == "text_corpus/last"
    assert [name_of(name) for name in ("last.ckpt", "hf:bert-base-uncased")] == ["last", "bert-base-uncased"]


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (7, 99, 300, 9000)] == ["7 s", "99 s", "5 min", "2.5 h"]


BAD = {
    "seeds": (["--seeds", "0"], "seeds must be at least 1, got 0"),
    "samples": (["--samples", "0"], "samples must be positive, got 0"),
    "task": (["--tasks", "colla"], "unknown task 'colla': did you mean 'cola'"),
    "decay": (["--layer-decay", "1.5"], "layer_decay must lie between 0 and 1"),
    "mnli": (["--tasks", "rte", "--from-mnli"], "--from-mnli needs mnli among the tasks"),
    "both": (["--search", "--from-mnli"], "--search, lr and batch_size and epochs are chosen for each task"),
    "search": (["--search", "--seeds", "1"], "the first seed chooses and is not counted: give --seeds 2 or more"),
    "workers": (["--tasks", "cola", "--workers", "0"], "workers must be at least 1, got 0"),
    "length": (["--tasks", "cola", "--max-length", "3"], "max_length must be at least 4"),
    "misspelt": (["--epoks", "3"], "has no option"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_option_is_one_line_before_anything_is_written(run, capsys, case):
    words, message = BAD[case]
    code, out = run(f"bad {case}", *words)
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]
    assert not out.exists()


def test_missing_data_and_a_missing_encoder_are_one_line(run, data, encoder, tmp_path, capsys):
    missing = tmp_path / "missing"
    missing.mkdir()
    for words in ([str(encoder), "--data", str(missing)], ["gone.ckpt", "--data", str(data)]):
        assert main(["glue", *words, "--tasks", "cola", "--out", str(tmp_path / "out")]) == 2
        assert len([line for line in capsys.readouterr().err.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scores_is_one_line(tmp_path, capsys):
    assert main(["glue-compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no scores.json: give the folder of a finished `bamboo glue`" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text('{"encoder": "x", "tasks": [{}]}')
    assert main(["glue-compare", str(tmp_path), str(tmp_path)]) == 2
    assert "is not what `bamboo glue` writes" in capsys.readouterr().err
