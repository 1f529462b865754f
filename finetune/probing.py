"""A linear probe of every layer at once: which layers of a frozen encoder carry the classes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from bamboo.analysis.captures import State, capture
from bamboo.analysis.measures import token_similarity
from bamboo.seeds import derive_seed
from bamboo.vision.pixels import PixelScale

from .features import Features, normed_features


class LayerFeatures(NamedTuple):
    """What one pass over a data set leaves of each layer, the embedding first.

    Args:
        features: (layers, n, width), the mean of the patch tokens on the residual stream.
        labels: (n,).
        similarity: (layers,), the mean cosine of two patch tokens of an image, over all images.
        normed: (n, width), the mean of the patch tokens after the final norm.
    """

    features: Tensor
    labels: Tensor
    similarity: Tensor
    normed: Tensor | None = None


def layer_features(encoder: VisionTransformer, scale: PixelScale) -> Callable[[Tensor], Features]:
    """What gives of bytes (B, C, H, W) the features of every layer, the embedding first, in fp32.

    `stream` (B, layers, D) is the mean of the patch tokens on the residual stream, `similarity` (B, layers) the mean
    cosine of two of them, and `normed` (B, D) the mean of the patch tokens after the final norm.
    """
    normed = normed_features(encoder, scale)
    means: list[Tensor] = []
    similarities: list[Tensor] = []

    def reduce(state: State) -> None:
        if state.position == "stream":
            patches = state.tokens[:, encoder.num_prefix_tokens :].float()
            means.append(patches.mean(dim=1))
            similarities.append(token_similarity(patches))

    def compute(images: Tensor) -> Features:
        means.clear()
        similarities.clear()
        with capture(encoder, reduce):
            last = normed(images)["mean"]
        return {"stream": torch.stack(means, 1), "similarity": torch.stack(similarities, 1), "normed": last}

    return compute


def by_layer(features: Features) -> LayerFeatures:
    """What `layer_features` gave of a data set, with its labels."""
    stream = features["stream"].transpose(0, 1)
    return LayerFeatures(stream, features["label"], features["similarity"].mean(dim=0), features["normed"])


def probe_accuracies(
    train: LayerFeatures,
    test: LayerFeatures,
    device: torch.device,
    epochs: int = 50,
    seed: int = 0,
    lrs: Sequence[float] = (0.01,),
) -> Tensor:
    """Share of test samples (rates, layers) that a linear classifier on each layer's features gets right.

    Features are standardised by the training set; the classifiers of all learning rates and layers are trained side by
    side, in the same batches, whose order is drawn by the seed, on cross-entropy by AdamW under a cosine. They do not
    touch each other.
    """
    deviation, mean = (part.to(device) for part in torch.std_mean(train.features, dim=1, keepdim=True))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    layers, count, width = train.features.shape
    # Of each learning rate the weights and biases of all layers.
    probes = [
        [torch.zeros(layers, rows, classes, device=device, requires_grad=True) for rows in (width, 1)] for _ in lrs
    ]
    groups = [{"params": parameters, "lr": lr} for parameters, lr in zip(probes, lrs, strict=True)]
    batch = min(256, count)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)

    def probe(features: Tensor) -> Tensor:
        """Logits (rates, layers, n, classes) of features (layers, n, width)."""
        standardised = (features.to(device) - mean) / (deviation + 1e-6)
        return torch.stack([torch.baddbmm(bias, standardised, weight) for weight, bias in probes])

    for _ in range(epochs):
        for index in torch.randperm(count, generator=generator).split(batch)[: count // batch]:
            logits = probe(train.features[:, index])
            target = train.labels[index].to(device).expand(len(lrs), layers, -1)
            loss = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="sum") / batch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        chunks = zip(test.features.split(1024, dim=1), test.labels.split(1024), strict=True)
        right = [(probe(x).argmax(-1) == y.to(device)).sum(dim=-1) for x, y in chunks]
    return torch.stack(right).sum(dim=0).cpu() / len(test.labels)


def project(features: Tensor, width: int) -> Tensor:
    """Features (..., D) through one random matrix (D, width) of N(0, 1 / width), the same for all features of D.

    So features of different D are compared at one width. Those of `width` or less are given back as they are.
    """
    own = features.shape[-1]
    if own <= width:
        return features
    generator = torch.Generator().manual_seed(derive_seed("projection", own, width))
    matrix = torch.randn(own, width, generator=generator) / width**0.5
    projected: Tensor = features @ matrix.to(features.device)
    return projected


class Choice(NamedTuple):
    """What held-out training samples choose: the place of each layer's learning rate, and the layer."""

    lrs: list[int]
    layer: int


def choose(
    train: LayerFeatures,
    device: torch.device,
    epochs: int = 50,
    seed: int = 0,
    lrs: Sequence[float] = (0.01,),
) -> Choice:
    """The learning rates and the layer that are best on a fifth of the training samples, held out by the seed.

    A test set has no say in it, so the accuracy there of what is chosen here is no maximum over layers and rates.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe held out"))
    order = torch.randperm(len(train.labels), generator=generator)
    parts = order.tensor_split([max(len(order) // 5, 1)])
    held_out, rest = (train._replace(features=train.features[:, rows], labels=train.labels[rows]) for rows in parts)
    best, places = probe_accuracies(rest, held_out, device, epochs, seed, lrs).max(dim=0)
    return Choice(places.tolist(), int(best.argmax()))
