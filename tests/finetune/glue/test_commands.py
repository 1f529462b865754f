"""`bamboo glue` and `bamboo glue-compare` as they are typed."""

import csv
import json
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from bamboo.cli import main
from bamboo.finetune.glue.comparison import Difference, differences
from bamboo.finetune.glue.metrics import majority_baseline
from bamboo.finetune.glue.scores import EIGHT, Scores, Spread, TaskScores, duration, markdown, table, write_scores
from bamboo.finetune.glue.tasks import TASKS
from tests.finetune.glue.tiny import write_encoder


@pytest.fixture(scope="module")
def run(encoder, data, tmp_path_factory):
    """A function that types `bamboo glue` with small sizes."""
    folder = tmp_path_factory.mktemp("runs")

    def glue(name, *words, source=encoder):
        sizes = ["--max-length", "64", "--epochs", "1", "--lr", "1e-3", "--batch-size", "16"]
        out = folder / name
        return main(["glue", str(source), "--data", str(data), "--out", str(out), *sizes, *words]), out

    return glue


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    submission = tmp_path_factory.mktemp("submission")
    code, out = run("whole", "--seeds", "3", "--submission", str(submission))
    assert code == 0
    return out, submission


def read(out):
    return json.loads((out / "scores.json").read_text())


def test_all_files_hold_the_eight_tasks_and_their_average(whole):
    out, _ = whole
    told, cells = read(out), {}
    assert [task["name"] for task in told["tasks"]] == list(EIGHT)
    for task in told["tasks"]:
        each = [json.loads((out / f"cells/{task['name']}-seed{seed}.json").read_text()) for seed in range(3)]
        cells[task["name"]] = [math.nan if cell["score"] is None else cell["score"] for cell in each]
        assert (task["train"], sum(task["dev"].values())) == (32, 48 if task["name"] == "mnli" else 24)
    medians = {name: float(np.median(values)) for name, values in cells.items()}
    assert told["missing"] == []
    if any(map(math.isnan, medians.values())):
        assert told["average"] is None
    else:
        assert told["average"] == pytest.approx(np.mean(list(medians.values())))
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == [name for name in EIGHT for _ in metrics_of(name)]
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
    assert {"CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv"} <= set(files.namelist())
    scores = [json.loads((out / f"cells/rte-seed{seed}.json").read_text())["score"] for seed in range(3)]
    median = int(np.argsort(scores, kind="stable")[1])
    expected = json.loads((out / f"predictions/rte-seed{median}.json").read_text())["test"]
    words = ("entailment", "not_entailment")
    lines = [f"{index}\t{words[value]}" for index, value in zip(expected["ids"], expected["predictions"], strict=True)]
    assert files.read("RTE.tsv").decode().splitlines() == ["index\tprediction", *lines]


def test_the_same_command_again_runs_nothing_and_another_is_refused(whole, run, capsys, monkeypatch):
    from bamboo.finetune.glue import sweep

    monkeypatch.setattr(sweep, "run_cell", lambda *_: pytest.fail("it was run again"))
    before = read(whole[0])
    assert run("whole", "--seeds", "3")[0] == 0
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
    assert [task["name"] for task in read(out)["tasks"]] == ["cola", "wnli"]


def test_the_majority_baseline_is_that_of_the_data(whole, data):
    from bamboo.finetune.glue.reading import read_split

    (told,) = (task for task in read(whole[0])["tasks"] if task["name"] == "mrpc")
    train, dev = (read_split(TASKS["mrpc"], data, split).labels for split in ("train", "dev"))
    assert told["majority"] == majority_baseline(TASKS["mrpc"], train, dev)


def test_two_encoders_are_set_side_by_side(whole, run, tmp_path, capsys):
    other = write_encoder(tmp_path / "modern", "modernbert")
    code, out = run("modern", "--tasks", "cola", "sst2", "--seeds", "3", source=other)
    assert code == 0
    capsys.readouterr()
    assert main(["glue-compare", str(whole[0]), str(out), "--out", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    assert "| CoLA" in printed
    assert "do not overlap" in printed
    assert "No average over the eight tasks: MRPC, STS-B, QQP, MNLI, QNLI, RTE missing in one of the two." in printed
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == ["comparison.csv", "comparison.md", "comparison.png", "comparison.svg"]
    assert main(["glue-compare", str(whole[0]), str(whole[0])]) == 0
    same = capsys.readouterr().out
    assert "yes" not in same
    assert "| average" in same


def scored(name, low, high, seeds=3, train=10):
    spread = Spread((low + high) / 2, low, high)
    metrics = dict.fromkeys(TASKS[name].metrics, spread)
    return TaskScores(
        name, spread, metrics, dict.fromkeys(metrics, 0.5), tuple(range(seeds)), train, {"dev": 5}, 3.0, {}
    )


@pytest.mark.parametrize(
    ("one", "two", "seeds", "expected"),
    [
        ((0.5, 0.6), (0.61, 0.7), (3, 3), True),
        ((0.61, 0.7), (0.5, 0.6), (3, 3), True),
        ((0.5, 0.6), (0.6, 0.7), (3, 3), False),
        ((0.5, 0.6), (0.61, 0.7), (1, 3), None),
        ((math.nan, math.nan), (0.61, 0.7), (3, 3), None),
    ],
)
def test_a_difference_exceeds_the_spread_where_the_ranges_do_not_overlap(one, two, seeds, expected):
    spreads = (Spread(sum(ends) / 2, *ends) for ends in (one, two))
    assert Difference("cola", *spreads, seeds).exceeds is expected


def test_scores_survive_their_file_also_where_one_is_not_defined(tmp_path):
    undefined = scored("stsb", math.nan, math.nan)
    scores = Scores("tiny", (scored("cola", 0.1, 0.3), undefined))
    write_scores(scores, tmp_path)
    again = Scores.read(tmp_path)
    assert again.tasks[0] == scores.tasks[0]
    assert math.isnan(again.tasks[1].score.median)
    assert "undefined" in markdown(again)
    assert "NaN" not in (tmp_path / "scores.json").read_text()


def test_scores_on_other_examples_are_not_compared(tmp_path):
    one, two = (Scores("x", (scored("cola", 0.1, 0.2, train=train),)) for train in (10, 11))
    with pytest.raises(ValueError, match="only scores on the same examples can be compared"):
        differences(one, two)


def test_tables_are_aligned_markdown():
    text = table([("task", "metric", "median"), ("CoLA", "mcc", "5.0"), ("MRPC", "f1", "81.25")])
    assert text.splitlines() == [
        "| task | metric | median |",
        "|------|--------|-------:|",
        "| CoLA | mcc    |    5.0 |",
        "| MRPC | f1     |  81.25 |",
    ]


def test_durations_are_read_at_a_glance():
    assert [duration(seconds) for seconds in (7, 99, 300, 9000)] == ["7 s", "99 s", "5 min", "2.5 h"]


BAD = {
    "seeds": (["--seeds", "0"], "seeds must be at least 1, got 0"),
    "samples": (["--samples", "0"], "samples must be positive, got 0"),
    "task": (["--tasks", "colla"], "unknown task 'colla': did you mean 'cola'"),
    "decay": (["--layer-decay", "1.5"], "layer_decay must lie between 0 and 1, got 1.5"),
    "mnli": (["--tasks", "rte", "--from-mnli"], "--from-mnli needs mnli among the tasks"),
    "both": (["--search", "--from-mnli"], "--search, lr and batch_size and epochs are chosen for each task"),
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
