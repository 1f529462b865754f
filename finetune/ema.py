"""A moving average of the weights, which is what is evaluated, saved and exported."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bamboo.errors import InputError


class EMA(WeightAveraging):
    """An exponential moving average of the weights, kept beside them.

    Validation runs on the average, and a checkpoint's weights are the average; a resumed run goes on from the weights
    themselves, which the checkpoint holds too.

    Args:
        decay: share of the average that is kept in a step.

    Raises:
        InputError: where `decay` does not lie between 0 and 1.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 < decay < 1:
            raise InputError(f"decay must lie between 0 and 1, got {decay}")
        # Buffers, such as the statistics of a batch norm, are averages already: they are copied.
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: the last checkpoint is still to be written, and holds the weights and the average apart."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, for whoever uses it next in this process."""
        super().on_train_end(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume both; outside of training the average alone, which is the checkpoint's weights."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
