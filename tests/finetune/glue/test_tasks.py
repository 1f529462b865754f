import pytest

from bamboo.errors import InputError
from bamboo.finetune.glue.tasks import DIAGNOSTIC, TASKS, find_tasks

# Written by hand from the card of the data set `nyu-mll/glue`: the names of ClassLabel, and num_examples of the splits.
CARD = {
    "cola": (["unacceptable", "acceptable"], {"train": 8551, "dev": 1043, "test": 1063}),
    "sst2": (["negative", "positive"], {"train": 67349, "dev": 872, "test": 1821}),
    "mrpc": (["not_equivalent", "equivalent"], {"train": 3668, "dev": 408, "test": 1725}),
    "stsb": ([], {"train": 5749, "dev": 1500, "test": 1379}),
    "qqp": (["not_duplicate", "duplicate"], {"train": 363846, "dev": 40430, "test": 390965}),
    "mnli": (
        ["entailment", "neutral", "contradiction"],
        {
            "train": 392702,
            "dev_matched": 9815,
            "dev_mismatched": 9832,
            "test_matched": 9796,
            "test_mismatched": 9847,
        },
    ),
    "qnli": (["entailment", "not_entailment"], {"train": 104743, "dev": 5463, "test": 5463}),
    "rte": (["entailment", "not_entailment"], {"train": 2490, "dev": 277, "test": 3000}),
    "wnli": (["not_entailment", "entailment"], {"train": 635, "dev": 71, "test": 146}),
}
TEXTS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def test_labels_rows_and_columns_are_those_of_the_published_card():
    assert {name: (list(task.labels), dict(task.rows)) for name, task in TASKS.items()} == CARD
    assert {name: task.texts for name, task in TASKS.items()} == TEXTS
    assert DIAGNOSTIC.labels == TASKS["mnli"].labels
    assert dict(DIAGNOSTIC.rows) == {"test": 1104}


def test_labels_are_written_in_the_order_of_their_ids():
    assert all(len(task.codes) == len(task.labels) for task in TASKS.values())
    assert TASKS["mnli"].codes == ("entailment", "neutral", "contradiction")
    assert TASKS["qnli"].codes == TASKS["rte"].codes == ("entailment", "not_entailment")
    digits = [task.codes for task in TASKS.values() if task.name in ("cola", "sst2", "mrpc", "qqp", "wnli")]
    assert digits == [("0", "1")] * 5


def test_metrics_are_those_of_the_benchmark():
    metrics = {name: task.metrics for name, task in TASKS.items()}
    assert metrics["cola"] == ("matthews",)
    assert metrics["mrpc"] == metrics["qqp"] == ("f1", "accuracy")
    assert metrics["stsb"] == ("pearson", "spearman")
    assert all(metrics[name] == ("accuracy",) for name in ("sst2", "mnli", "qnli", "rte", "wnli"))


def test_splits_and_outputs_follow_from_the_table():
    assert TASKS["mnli"].eval_splits == ("dev_matched", "dev_mismatched")
    assert TASKS["mnli"].test_splits == ("test_matched", "test_mismatched")
    assert TASKS["rte"].eval_splits == ("dev",)
    assert [TASKS[name].num_outputs for name in ("cola", "mnli", "stsb")] == [2, 3, 1]
    assert [task.name for task in TASKS.values() if task.is_regression] == ["stsb"]


@pytest.mark.parametrize("spelling", ["STS-B", "sts-b", "stsb", "sts_b", "StsB"])
def test_a_task_is_found_by_any_spelling(spelling):
    assert find_tasks([spelling]) == (TASKS["stsb"],)


def test_official_titles_and_folders_find_their_tasks():
    for task in TASKS.values():
        assert find_tasks([task.title]) == (task,)
        assert task.folder == task.title
    assert DIAGNOSTIC.folder == "diagnostic"


def test_all_is_the_eight_that_averages_are_taken_over():
    eight = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert [task.name for task in find_tasks(["all"])] == eight
    assert [task.name for task in find_tasks(["rte", "all", "WNLI", "rte"])] == ["rte", *eight[:-1], "wnli"]


def test_an_unknown_task_gets_the_nearest_names():
    with pytest.raises(InputError, match="unknown task 'colla': did you mean 'cola'"):
        find_tasks(["colla"])


def test_tasks_serve_as_keys():
    assert {TASKS["cola"]: 1}[find_tasks(["CoLA"])[0]] == 1
