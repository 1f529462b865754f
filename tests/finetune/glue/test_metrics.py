import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bamboo.finetune.glue.metrics import compute, headline, majority_baseline
from bamboo.finetune.glue.tasks import TASKS

SKLEARN = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0),
    "matthews": matthews_corrcoef,
}
CLASSES = [task for task in TASKS.values() if not task.is_regression]


def expected(task, predictions, labels):
    return {name: SKLEARN[name](labels, predictions) for name in task.metrics}


@pytest.mark.parametrize("task", CLASSES, ids=lambda task: task.name)
@pytest.mark.parametrize("seed", range(5))
def test_random_predictions_score_as_with_sklearn(task, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, task.num_outputs, 500)
    guesses = generator.integers(0, task.num_outputs, 500)
    predictions = np.where(generator.random(500) < 0.6, labels, guesses)
    assert compute(task, predictions, labels) == pytest.approx(expected(task, predictions, labels), abs=1e-6)


@pytest.mark.parametrize("task", CLASSES, ids=lambda task: task.name)
@pytest.mark.parametrize("predictions", [[0] * 6, [1] * 6, [0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 0]])
@pytest.mark.parametrize("labels", [[0] * 6, [1] * 6, [0, 0, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0]])
def test_degenerate_predictions_and_labels_score_as_with_sklearn(task, predictions, labels):
    found = compute(task, predictions, labels)
    assert found == pytest.approx(expected(task, predictions, labels), abs=1e-6)
    assert all(math.isfinite(score) for score in found.values())


def test_constant_predictions_have_no_matthews_correlation():
    assert compute(TASKS["cola"], [1] * 100, [0, 1] * 50) == {"matthews": 0.0}


def test_f1_without_a_positive_prediction_is_zero():
    assert compute(TASKS["mrpc"], [0, 0, 0], [1, 0, 1]) == {"f1": 0.0, "accuracy": pytest.approx(1 / 3)}


@pytest.mark.parametrize("decimals", [None, 1, 0], ids=["no ties", "some ties", "many ties"])
def test_correlations_equal_those_of_scipy(decimals):
    generator = np.random.default_rng(0)
    labels = generator.uniform(0, 5, 1500).round(3 if decimals is None else decimals)
    predictions = labels + generator.normal(0, 1, 1500)
    predictions = predictions if decimals is None else predictions.round(decimals)
    found = compute(TASKS["stsb"], predictions, labels)
    assert found["pearson"] == pytest.approx(pearsonr(predictions, labels).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(spearmanr(predictions, labels).statistic, abs=1e-6)


def test_small_differences_of_large_predictions_still_correlate():
    labels = np.linspace(0, 5, 200)
    predictions = 1000 + 1e-4 * labels
    assert compute(TASKS["stsb"], predictions, labels) == pytest.approx({"pearson": 1.0, "spearman": 1.0}, abs=1e-6)


@pytest.mark.parametrize("predictions", [[0.1] * 7, [1.0, 2.0, math.nan, 4.0, 5.0, 0.0, 1.0], [math.inf] + [1.0] * 6])
def test_undefined_correlations_are_nan_and_said_so(predictions, caplog):
    with caplog.at_level(logging.WARNING):
        found = compute(TASKS["stsb"], predictions, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.5])
    assert all(math.isnan(score) for score in found.values())
    (record,) = caplog.records
    assert "STS-B: pearson and spearman undefined (NaN)" in record.getMessage()


def test_tensors_of_any_kind_are_scored():
    predictions = torch.tensor([1.0, 2.5, 3.0], dtype=torch.bfloat16, requires_grad=True)
    assert compute(TASKS["stsb"], predictions, torch.tensor([1.0, 2.0, 3.5]))["spearman"] == pytest.approx(1, abs=1e-5)
    assert compute(TASKS["rte"], torch.tensor([1, 0]), torch.tensor([1, 1])) == {"accuracy": 0.5}


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_predictions_and_labels_must_belong_together(predictions, labels):
    with pytest.raises(ValueError, match=r"RTE: predictions of shape"):
        compute(TASKS["rte"], predictions, labels)


def test_the_one_number_is_the_mean_of_metrics_and_of_sets():
    assert headline(TASKS["mrpc"], {"dev": {"f1": 0.9, "accuracy": 0.8}}) == pytest.approx(0.85)
    sets = {"dev_matched": {"accuracy": 0.84}, "dev_mismatched": {"accuracy": 0.86}}
    assert headline(TASKS["mnli"], sets) == pytest.approx(0.85)
    assert headline(TASKS["cola"], {"dev": {"matthews": 0.6}}) == pytest.approx(0.6)
    assert math.isnan(headline(TASKS["stsb"], {"dev": {"pearson": math.nan, "spearman": 0.5}}))


def test_the_majority_baseline_predicts_what_is_most_frequent_in_training():
    assert majority_baseline(TASKS["rte"], [1, 1, 0], [1, 0, 0, 0]) == {"accuracy": 0.25}
    assert majority_baseline(TASKS["cola"], [1, 1, 0], [1, 0, 1]) == {"matthews": 0.0}
    assert majority_baseline(TASKS["mnli"], [2, 2, 1, 1], [1, 1, 2]) == {"accuracy": pytest.approx(2 / 3)}
    found = majority_baseline(TASKS["mrpc"], [1, 1, 0], [1, 0, 1])
    assert found == pytest.approx({"f1": 0.8, "accuracy": 2 / 3})


def test_the_mean_similarity_correlates_with_nothing_and_nobody_is_warned(caplog):
    found = majority_baseline(TASKS["stsb"], [1.0, 2.0], [0.0, 5.0])
    assert list(found) == ["pearson", "spearman"]
    assert all(math.isnan(score) for score in found.values())
    assert not caplog.records
