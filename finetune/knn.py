"""Nearest neighbours on frozen features: how good an encoder is, without training anything."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from bamboo.processes import of_all_processes
from bamboo.vision.encoder import encode

PIXELS = 1024
"""Values of an image, at most, for raw pixels to be a baseline: 32 x 32 grey ones. Above, they only cost memory."""


def mean_patch_features(encoder: VisionTransformer, images: Tensor) -> Tensor:
    """Features (B, D) of standardised images: the mean of the patch tokens after the final norm."""
    return encode(encoder, images)[:, encoder.num_prefix_tokens :].mean(dim=1)


@torch.no_grad()
def collect(
    features: Callable[[Tensor], Tensor], loader: Iterable[Mapping[str, Any]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (n, D) in fp32 and labels (n,) of all images of a loader."""
    rows, labels = [], []
    for batch in loader:
        rows.append(features(batch["image"].to(device, non_blocking=True)).float())
        labels.append(batch["label"].to(device))
    return torch.cat(rows), torch.cat(labels)


def nearest_neighbours_right(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    neighbours: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Whether the nearest training samples, by cosine, vote for the label of each test sample (m,).

    A neighbour at cosine s has exp(s / temperature) votes, as in Wu et al. 2018 (Instance Discrimination, eq. 3).

    Args:
        train: features (n, D) and labels (n,).
        test: features (m, D) and labels (m,).
        neighbours: how many vote, at most n.
        temperature: the lower, the more the nearest decide.
        chunk: test samples compared at once, which bounds the memory to chunk x n.
    """
    bank, labels = F.normalize(train[0], dim=1), train[1]
    classes, right = int(labels.max()) + 1, []
    for queries, truth in zip(test[0].split(chunk), test[1].split(chunk), strict=True):
        cosines, nearest = (F.normalize(queries, dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = queries.new_zeros(len(queries), classes)
        votes.scatter_add_(1, labels[nearest], ((cosines - 1) / temperature).exp())
        right.append(votes.argmax(dim=1) == truth)
    return torch.cat(right)


def nearest_neighbour_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **options: Any) -> float:
    """Share of test samples that `nearest_neighbours_right` gets right."""
    return float(nearest_neighbours_right(train, test, **options).double().mean())


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
                self.accuracy["raw pixels"] = self._measure(lambda images: images.flatten(1), trainer)
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
        encoder, pixels = module.mae.encoder, module.pixels
        training = encoder.training
        encoder.eval()
        accuracy = self._measure(lambda images: mean_patch_features(encoder, pixels(images)), trainer)
        encoder.train(training)
        return accuracy

    def _measure(self, features: Callable[[Tensor], Tensor], trainer: Trainer) -> float:
        device = trainer.strategy.root_device
        with trainer.precision_plugin.forward_context():
            train, test = (collect(features, loader, device) for loader in self.loaders)  # type: ignore[union-attr]
        bank, labels = (torch.cat(of_all_processes(part.cpu())).to(device) for part in train)
        right = of_all_processes(nearest_neighbours_right((bank, labels), test).cpu())
        return float(torch.cat(right).double().mean())
