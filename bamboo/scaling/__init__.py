"""Scaling laws of finished runs: loss against parameters and data, the best batch size, the learning rate."""

from .batches import BatchLaw, best_batch, learning_rate_law
from .estimates import Estimate
from .loss import Holdout, LossFit, fit_loss, holdout_error
from .power_laws import PowerLaw, fit_power_law
from .runs import Run, read_runs, tuned

__all__ = [
    "BatchLaw",
    "Estimate",
    "Holdout",
    "LossFit",
    "PowerLaw",
    "Run",
    "best_batch",
    "fit_loss",
    "fit_power_law",
    "holdout_error",
    "learning_rate_law",
    "read_runs",
    "tuned",
]
