"""GLUE's metrics, as fractions: torchmetrics computes them, the cases that it leaves open are settled here."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_f1_score, multiclass_accuracy, multiclass_matthews_corrcoef
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from .tasks import Task

log = logging.getLogger(__name__)

Values = Sequence[int] | Sequence[float] | Tensor


def compute(task: Task, predictions: Values, labels: Values) -> dict[str, float]:
    """The metrics of a task over a whole split, by name, in the order of `task.metrics`.

    Accuracy; F1 of class 1, which is 0 where no prediction and no label is positive; Matthews correlation
    (Matthews 1975), which is 0 where all predictions or all labels are alike; Pearson and Spearman correlation, ties
    sharing their mean rank, which are NaN where all predictions or all labels are alike or a prediction is not finite.

    Args:
        task: of GLUE.
        predictions: (N,) ids of classes, or similarities.
        labels: (N,) likewise.

    Raises:
        ValueError: where there are none, or not as many of the one as of the other.
    """
    scores = _scores(task, predictions, labels)
    undefined = [name for name, score in scores.items() if math.isnan(score)]
    if undefined:
        reason = "its predictions or labels are all alike, or not finite"
        log.warning("%s: %s undefined (NaN), since %s", task.title, " and ".join(undefined), reason)
    return scores


def headline(task: Task, scores: Mapping[str, Mapping[str, float]]) -> float:
    """The task's one number, of what `compute` gives for each of its splits: the mean over metrics and splits.

    It is the benchmark's own counting: the unweighted mean of F1 and accuracy for MRPC and QQP, of Pearson and Spearman
    for STS-B, and of the matched and mismatched sets of MNLI. BERT's table takes F1 and Spearman alone.
    """
    values = [scores[split][name] for split in task.eval_splits for name in task.metrics]
    return sum(values) / len(values)


def majority_baseline(task: Task, train_labels: Values, eval_labels: Values) -> dict[str, float]:
    """What always predicting the most frequent class, or the mean similarity, of the training labels scores.

    Of classes that are equally frequent it is the first.
    """
    values = torch.as_tensor(train_labels).tolist()
    counts = Counter(values)
    guess = sum(values) / len(values) if task.is_regression else min(counts, key=lambda value: (-counts[value], value))
    return _scores(task, [guess] * len(eval_labels), eval_labels)


def _scores(task: Task, predictions: Values, labels: Values) -> dict[str, float]:
    dtype = torch.float64 if task.is_regression else torch.int64
    guesses, truth = (torch.as_tensor(values).detach().cpu().to(dtype) for values in (predictions, labels))
    if guesses.ndim != 1 or guesses.shape != truth.shape or not len(guesses):
        shapes = f"predictions of shape {tuple(guesses.shape)}, labels of shape {tuple(truth.shape)}"
        raise ValueError(f"{task.title}: {shapes}")
    return {name: _score(name, guesses, truth, task.num_outputs) for name in task.metrics}


def _score(name: str, predictions: Tensor, labels: Tensor, classes: int) -> float:
    if name == "accuracy":
        return float(multiclass_accuracy(predictions, labels, classes, average="micro"))
    if name == "f1":
        return float(binary_f1_score(predictions, labels))
    # A mean is not exact: without this, noise of the last digit would decide what a constant correlates with.
    constant = bool((predictions == predictions[0]).all() or (labels == labels[0]).all())
    if name == "matthews":
        return 0.0 if constant else float(multiclass_matthews_corrcoef(predictions, labels, classes))
    if constant or not predictions.isfinite().all():
        return math.nan
    correlation = {"pearson": pearson_corrcoef, "spearman": spearman_corrcoef}[name]
    return float(correlation(predictions, labels))
