"""Scaling laws of finished runs: loss against parameters and data, the best batch size, the learning rate."""

from .loss import fit_loss as fit_loss
from .loss import holdout_error as holdout_error
from .optima import best_batch as best_batch
from .optima import fit_power_law as fit_power_law
from .optima import learning_rate_law as learning_rate_law
from .report import analyse as analyse
from .runs import check_runs as check_runs
from .runs import read_runs as read_runs
from .runs import tuned as tuned
