"""A linear probe of every layer at once: which layers of a frozen encoder carry the classes."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from bamboo.analysis.captures import State, capture
from bamboo.analysis.measures import token_similarity
from bamboo.finetune.knn import mean_patch_features
from bamboo.seeds import derive_seed
from bamboo.vision.pixels import PixelScale


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


@torch.no_grad()
def layer_features(
    encoder: VisionTransformer, scale: PixelScale, loader: Iterable[Mapping[str, Any]], device: torch.device
) -> LayerFeatures:
    """Features, labels and token similarity of every layer of an encoder in evaluation mode on `device`, in one pass.

    They are kept in memory, in fp32.
    """
    rows: list[Tensor] = []
    normed: list[Tensor] = []
    labels: list[Tensor] = []
    total = torch.zeros(len(encoder.blocks) + 1, device=device)
    batch_states: list[tuple[Tensor, Tensor]] = []

    def reduce(state: State) -> None:
        if state.position == "stream":
            patches = state.tokens[:, encoder.num_prefix_tokens :].float()
            batch_states.append((patches.mean(dim=1), token_similarity(patches).sum()))

    with capture(encoder, reduce):
        for batch in loader:
            batch_states.clear()
            normed.append(
                mean_patch_features(encoder, scale(batch["image"].to(device, non_blocking=True))).float().cpu()
            )
            rows.append(torch.stack([features for features, _ in batch_states]).cpu())
            total += torch.stack([similarity for _, similarity in batch_states])
            labels.append(batch["label"])
    together = torch.cat(labels)
    return LayerFeatures(torch.cat(rows, dim=1), together, total.cpu() / len(together), torch.cat(normed))


def probe_accuracies(
    train: LayerFeatures, test: LayerFeatures, device: torch.device, epochs: int = 50, seed: int = 0
) -> Tensor:
    """Share of test samples (layers,) that a linear classifier on each layer's features gets right.

    Features are standardised by the training set; the classifiers of all layers are trained side by side, in the same
    batches, whose order is drawn by the seed, on cross-entropy by AdamW under a cosine. They do not touch each other.
    """
    deviation, mean = (part.to(device) for part in torch.std_mean(train.features, dim=1, keepdim=True))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    layers, count, width = train.features.shape
    weight, bias = (torch.zeros(layers, rows, classes, device=device, requires_grad=True) for rows in (width, 1))
    batch = min(256, count)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.01, weight_decay=0.01)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)

    def probe(features: Tensor) -> Tensor:
        """Logits (layers, n, classes) of features (layers, n, width)."""
        return torch.baddbmm(bias, (features.to(device) - mean) / (deviation + 1e-6), weight)

    for _ in range(epochs):
        for index in torch.randperm(count, generator=generator).split(batch)[: count // batch]:
            logits = probe(train.features[:, index])
            target = train.labels[index].to(device).expand(layers, -1)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / batch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        chunks = zip(test.features.split(1024, dim=1), test.labels.split(1024), strict=True)
        right = [(probe(x).argmax(-1) == y.to(device)).sum(dim=1) for x, y in chunks]
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


def best_layer(train: LayerFeatures, device: torch.device, epochs: int = 50, seed: int = 0) -> int:
    """The layer whose classifier is best on a fifth of the training samples, which is held out by the seed.

    A test set has no say in it, so the accuracy there of the layer that is chosen here is no maximum over layers.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe held out"))
    order = torch.randperm(len(train.labels), generator=generator)
    parts = order.tensor_split([max(len(order) // 5, 1)])
    held_out, rest = (train._replace(features=train.features[:, rows], labels=train.labels[rows]) for rows in parts)
    return int(probe_accuracies(rest, held_out, device, epochs, seed).argmax())
