"""Hyperparameters of fine-tuning: one setting for all tasks, and the grid that BERT was searched over."""

from dataclasses import dataclass
from itertools import product

from bamboo.errors import InputError
from bamboo.recipes import Recipe


@dataclass(frozen=True)
class Setting:
    """What is chosen for a task; the defaults are one setting for all tasks (Geiping and Goldstein 2023).

    Args:
        lr: learning rate at the peak, as it is used; no rule scales it.
        batch_size: texts or pairs of one step.
        epochs: passes over the training set.
    """

    lr: float = 4e-5
    batch_size: int = 16
    epochs: int = 5

    def __post_init__(self) -> None:
        if min(self.lr, self.batch_size, self.epochs) <= 0:
            raise InputError(f"lr, batch_size and epochs must be positive, got {self}")

    def __str__(self) -> str:
        return f"lr {self.lr:g}, batch {self.batch_size}, {self.epochs} epochs"

    @property
    def recipe(self) -> Recipe:
        """AdamW without weight decay, a linear warm-up over a tenth of training and a cosine to 0."""
        base_lr = self.lr * 256 / self.batch_size  # a recipe's is per 256 samples
        return Recipe(base_lr=base_lr, warmup_share=0.1, weight_decay=0.0, betas=(0.9, 0.999))


SEARCH = tuple(Setting(lr, batch, epochs) for batch, lr, epochs in product((16, 32), (5e-5, 3e-5, 2e-5), (2, 3, 4)))
"""The grid of Devlin et al. 2019, from which each task takes what is best on its dev set."""

CLIP = 1.0
"""Norm that gradients are clipped to, as in Devlin et al. 2019."""
