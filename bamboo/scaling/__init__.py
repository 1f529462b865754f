"""Scaling laws of finished runs: loss against parameters and data, the best batch size, the learning rate."""

from .loss import fit_loss, holdout_error
from .optima import best_batch, fit_power_law, learning_rate_law
from .report import analyse
from .runs import check_runs, read_runs, tuned

__all__ = [
    "analyse",
    "best_batch",
    "check_runs",
    "fit_loss",
    "fit_power_law",
    "holdout_error",
    "learning_rate_law",
    "read_runs",
    "tuned",
]
