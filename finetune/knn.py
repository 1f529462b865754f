"""Nearest neighbours on frozen features: how good an encoder is, without training anything."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from .features import Features, extract, normed_features

PIXELS = 1024
"""Values of an image, at most, for raw pixels to be a baseline: 32 x 32 grey ones. Above, they only cost memory."""
TOP = 5
"""Classes that are named for an image, at most."""


def classes_by_votes(
    train: tuple[Tensor, Tensor],
    features: Tensor,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """The classes (len(k), m, 5) that the nearest training samples vote for, most votes first; -1 where none is left.

    A neighbour at cosine s has exp(s / temperature) votes, as in Wu et al. 2018 (Instance Discrimination, eq. 3) and in
    the evaluation of DINO (Caron et al. 2021), which takes 10, 20, 100 and 200 neighbours.

    Args:
        train: features (n, D) and labels (n,).
        features: of the test samples (m, D).
        k: how many neighbours vote, at most n; each number is an election of its own.
        temperature: the lower, the more the nearest decide.
        chunk: test samples compared at once, which bounds the memory to chunk x n.
    """
    bank, labels = F.normalize(train[0], dim=1), train[1]
    classes, elected = int(labels.max()) + 1, []
    for queries in features.split(chunk):
        cosines, nearest = (F.normalize(queries, dim=1) @ bank.T).topk(min(max(k), len(bank)), dim=1)
        votes = ((cosines - 1) / temperature).exp()
        voted = labels[nearest]
        for number in k:
            counts = votes.new_zeros(len(queries), classes).scatter_add_(1, voted[:, :number], votes[:, :number])
            most, names = counts.topk(min(TOP, classes), dim=1)
            elected.append(F.pad(names.masked_fill(most == 0, -1), (0, TOP - names.shape[1]), value=-1))
    return torch.cat([torch.stack(elected[i : i + len(k)]) for i in range(0, len(elected), len(k))], dim=1)


def nearest_neighbour_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20) -> float:
    """Share of test samples, features (m, D) and labels (m,), for whose label the nearest of `train` vote."""
    return float((classes_by_votes(train, test[0], [k])[0, :, 0] == test[1]).double().mean())


class NeighbourProbe(Callback):
    """Nearest-neighbour accuracy of the encoder's frozen features during training, beside two baselines.

    The baselines are the same encoder before its first step, and the raw pixels. Without labels it does nothing.

    Args:
        every_n_epochs: how often; the end of training is always probed.
        max_samples: images at most of the training set and of the validation set, evenly spaced.
    """

    def __init__(self, every_n_epochs: int = 20, max_samples: int = 5000) -> None:
        self.every_n_epochs, self.max_samples = every_n_epochs, max_samples
        self.accuracy: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The baselines, which a resumed run could not measure any more."""
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the baselines from the run that is resumed."""
        self.accuracy = state_dict["accuracy"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the baselines."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        labelled = data is not None and data.num_classes > 0
        self.loaders = data.probe_loaders(self.max_samples, shared=True) if labelled else None
        if self.loaders and trainer.global_step == 0 and len(data.labelled) <= self.max_samples:
            if data.in_chans * math.prod(data.size) <= PIXELS:
                self.accuracy["raw pixels"] = self._measure(lambda images: {"mean": images.flatten(1).float()}, trainer)
            name = "encoder at the start" if getattr(pl_module, "init_from", None) else "untrained encoder"
            self.accuracy[name] = self._measure_encoder(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, every so many epochs and after the last one."""
        epoch = trainer.current_epoch + 1
        if self.loaders and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs):
            self.accuracy["trained encoder"] = self._measure_encoder(trainer)
            pl_module.log("probe/nearest_neighbours", self.accuracy["trained encoder"], rank_zero_only=True)

    def summary(self) -> dict[str, str]:
        """What to print at the end of a run."""
        return {f"nearest neighbours, {name}": f"{100 * value:.1f} %" for name, value in self.accuracy.items()}

    def _measure_encoder(self, trainer: Trainer) -> float:
        module: Any = trainer.lightning_module
        encoder = module.mae.encoder
        training = encoder.training
        encoder.eval()
        accuracy = self._measure(normed_features(encoder, module.pixels), trainer)
        encoder.train(training)
        return accuracy

    def _measure(self, compute: Callable[[Tensor], Features], trainer: Trainer) -> float:
        device = trainer.strategy.root_device
        with trainer.precision_plugin.forward_context():
            parts = [extract(compute, loader, device) for loader in self.loaders or ()]
        train, test = ((part["mean"].to(device), part["label"].to(device)) for part in parts)
        return nearest_neighbour_accuracy(train, test)
