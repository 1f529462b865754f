import math
import zipfile

import numpy as np
import pytest
import torch

from bamboo.errors import InputError
from bamboo.finetune.glue.submission import write_submission
from bamboo.finetune.glue.tasks import DIAGNOSTIC, TASKS

# Lines of a whole submission with its headers, as people count them with `wc -l`.
LINES = {
    "AX.tsv": 1105,
    "CoLA.tsv": 1064,
    "MNLI-m.tsv": 9797,
    "MNLI-mm.tsv": 9848,
    "MRPC.tsv": 1726,
    "QNLI.tsv": 5464,
    "QQP.tsv": 390966,
    "RTE.tsv": 3001,
    "SST-2.tsv": 1822,
    "STS-B.tsv": 1380,
    "WNLI.tsv": 147,
}


def content_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def everything():
    generator = np.random.default_rng(0)
    predictions = {}
    for task in (*TASKS.values(), DIAGNOSTIC):
        for split in task.test_splits:
            rows = task.rows[split]
            values = (
                generator.normal(2.5, 2, rows) if task.is_regression else generator.integers(0, task.num_outputs, rows)
            )
            predictions[task, split] = (range(rows), values)
    return predictions


def test_a_whole_submission_has_the_files_and_lines_of_the_benchmark(tmp_path):
    path = write_submission(everything(), tmp_path)
    assert path == tmp_path / "submission.zip"
    assert {name: text.count("\n") for name, text in content_of(path).items()} == LINES
    assert [file.name for file in tmp_path.iterdir()] == ["submission.zip"]


@pytest.fixture
def small(monkeypatch):
    """A benchmark whose test sets have four rows each."""
    for task in (*TASKS.values(), DIAGNOSTIC):
        for split in task.test_splits:
            monkeypatch.setitem(task.rows, split, 4)


def test_labels_are_written_as_the_benchmark_writes_them(tmp_path, small):
    predictions = everything() | {
        (TASKS["mnli"], "test_mismatched"): (range(4), [2, 1, 0, 0]),
        (TASKS["mnli"], "test_matched"): (range(4), torch.tensor([0, 1, 2, 0])),
        (TASKS["rte"], "test"): (range(4), np.array([1, 0, 0, 1])),
        (TASKS["wnli"], "test"): (range(4), [1, 0, 0, 1]),
        (TASKS["stsb"], "test"): (range(4), [5.4, -0.3, 2.00049, np.float32(3.1)]),
        (TASKS["cola"], "test"): (["0", "1", "2", "3"], [0, 1, 1, 1]),
        (DIAGNOSTIC, "test"): (range(4), [2, 1, 0, 2]),
    }
    expected = {
        "CoLA.tsv": ["0", "1", "1", "1"],
        "STS-B.tsv": ["5.000", "0.000", "2.000", "3.100"],
        "MNLI-m.tsv": ["entailment", "neutral", "contradiction", "entailment"],
        "MNLI-mm.tsv": ["contradiction", "neutral", "entailment", "entailment"],
        "RTE.tsv": ["not_entailment", "entailment", "entailment", "not_entailment"],
        "WNLI.tsv": ["1", "0", "0", "1"],
        "AX.tsv": ["contradiction", "neutral", "entailment", "contradiction"],
    }
    files = content_of(write_submission(predictions, tmp_path / "new" / "folder"))
    for name, words in expected.items():
        assert files[name].splitlines() == ["index\tprediction", *(f"{n}\t{word}" for n, word in enumerate(words))]


def test_equal_predictions_make_equal_files(tmp_path, small):
    one, two = (write_submission(everything(), tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (TASKS["wnli"], "WNLI.tsv missing"),
        (DIAGNOSTIC, "AX.tsv missing"),
        (TASKS["mnli"], "MNLI-m.tsv, MNLI-mm.tsv mi"),
    ],
)
def test_a_submission_is_whole_or_refused(tmp_path, small, left_out, message):
    part = {key: value for key, value in everything().items() if key[0] != left_out}
    with pytest.raises(InputError, match=message):
        write_submission(part, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_test_set_without_all_its_rows_is_refused_before_the_file_is_there(tmp_path, small):
    predictions = everything() | {(TASKS["cola"], "test"): (range(3), [0, 1, 0])}
    with pytest.raises(InputError, match=r"CoLA.tsv: 3 predictions for 3 rows, and the official test set has 4"):
        write_submission(predictions, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rte", [0, 1, 0, 2], r"RTE: the prediction for row 3 is 2: expected a class from 0 to 1"),
        ("rte", [-1, 0, 0, 0], r"RTE: the prediction for row 0 is -1: expected a class"),
        ("rte", [0.5, 0, 0, 0], r"RTE: the prediction for row 0 is 0.5: expected a class"),
        ("rte", [0], r"RTE.tsv: 1 predictions for 4 rows"),
        ("stsb", [1.0, math.nan, 1, 1], r"STS-B: the prediction for row 1 is nan: expected a finite number"),
    ],
)
def test_predictions_that_cannot_be_leave_the_last_submission_alone(tmp_path, small, name, values, message):
    path = write_submission(everything(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        write_submission(everything() | {(TASKS[name], "test"): (range(4), values)}, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rows_that_are_not_numbered_from_zero_are_refused(tmp_path, small):
    predictions = everything() | {(TASKS["wnli"], "test"): ([0, 2, 1, 3], [0, 0, 0, 0])}
    with pytest.raises(InputError, match=r"WNLI.tsv: row 1 of the test set has the index 2: rows are numbered from 0"):
        write_submission(predictions, tmp_path)
    assert list(tmp_path.iterdir()) == []
