"""What fine-tuning and probing cost: a step beside plain timm calls, probes beside a forward pass, a cache beside none.

Both sides of a ratio take turns, on one thread, so that other work on the machine slows both alike. Images are small,
which makes whatever is spent outside of the network count for more than it does at 224 pixels.
"""

import copy
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
from lightning import Callback, LightningDataModule, Trainer
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader

from bamboo.finetune.classifier import Classifier
from bamboo.finetune.features import extract, normed_features
from bamboo.finetune.probing import LayerFeatures, layer_features, probe_accuracies
from bamboo.recipes import Recipe
from bamboo.shapes import Patches, find_shape
from bamboo.vision.encoder import build_encoder
from bamboo.vision.pixels import PixelScale

SIDE, BATCH, STEPS = 64, 8, 4
CPU = torch.device("cpu")


class Images(LightningDataModule):
    """The same random bytes in every step."""

    def __init__(self, classes: int = 1000, steps: int = STEPS) -> None:
        super().__init__()
        self.batch_size, self.num_classes, self.steps = BATCH, classes, steps
        self.classes = tuple(map(str, range(classes)))
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        number = torch.arange(BATCH)
        self.batch = {"image": image, "label": number % classes, "index": number}

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches that are ready."""
        return DataLoader([self.batch] * self.steps, batch_size=None)  # type: ignore[arg-type]


class Clock(Callback):
    """Seconds of every training step but the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in pairwise(self.ends)]


def ours(shape: str, **options: Any) -> list[float]:
    """Seconds of steps of our module under Lightning."""
    recipe: dict[str, Any] = {
        "recipe": Recipe(warmup_share=0.1),
        "drop_path": 0.1,
        "layer_decay": 0.65,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
    }
    module = Classifier(1000, "scratch", shape, SIDE, 16, **{**recipe, **options})
    return run(module, Images()).seconds


def run(module: Classifier, data: Images, epochs: int = 1) -> Clock:
    """Train without anything around it."""
    clock = Clock()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[clock], limit_val_batches=0, **quiet)
    trainer.fit(module, datamodule=data)
    return clock


def plain_timm(shape: str) -> list[float]:
    """Seconds of the same steps by plain calls of timm, on timm's own model of that shape."""
    size = find_shape(shape)
    sizes = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads, "img_size": SIDE}
    model = timm.create_model("vit_base_patch16_224", global_pool="avg", drop_path_rate=0.1, **sizes).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.65 ** (12 / size.depth))
    mixup, criterion = Mixup(0.8, 1.0, num_classes=1000), SoftTargetCrossEntropy()
    batch, (mean, std) = Images().batch, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    ends = []
    for _ in range(STEPS):
        images, target = mixup(batch["image"].float().sub_(mean).div_(std), batch["label"])
        loss = criterion(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return [end - start for start, end in pairwise(ends)]


def step_ratio(shape: str, rounds: int = 3) -> float:
    """Median seconds of our step over timm's, both in every round."""
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        mine += ours(shape)
        theirs += plain_timm(shape)
    return statistics.median(mine) / statistics.median(theirs)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pass_ratios(rounds: int = 5) -> dict[str, float]:
    """Seconds of a pass with its features over those of the plain forward pass, bamboo-base."""
    encoder, scale, batch = (
        build_encoder(find_shape("bamboo-base"), Patches.of(SIDE, 16)).eval(),
        PixelScale(),
        Images().batch,
    )
    calls: dict[str, Callable[[], Any]] = {
        "plain": lambda: encoder.forward_features(scale(batch["image"])),
        "knn": lambda: extract(normed_features(encoder, scale), [batch], CPU),
        "probe": lambda: extract(layer_features(encoder, scale), [batch], CPU),
    }
    with torch.inference_mode():
        times = [{name: timed(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    medians = {name: statistics.median(one[name] for one in times) for name in calls}
    return {f"{name}_over_forward_pass": medians[name] / medians["plain"] for name in ("knn", "probe")}


def cache_gain(images: int = 512) -> float:
    """Seconds of an epoch of a linear probe that runs its frozen encoder over those on cached features, vit-tiny."""
    module = Classifier(
        10, "scratch", "vit-tiny", SIDE, 16, pool="token", freeze=True, batch_norm=True, recipe=Recipe(warmup_share=0.1)
    )
    steps = images // BATCH
    seconds = run(module, Images(10, steps)).seconds
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, images, 192, generator=generator)
    cached = LayerFeatures(features, torch.arange(images) % 10, torch.zeros(1))
    epochs = 20
    probe_accuracies(copy.copy(cached), cached, CPU, epochs=1)
    return statistics.median(seconds) * steps / (timed(lambda: probe_accuracies(cached, cached, CPU, epochs)) / epochs)


def bench_finetune() -> dict[str, float]:
    """Ratios: of a step at most 1, of the passes near 1, of the cache at least 10."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ratios = {f"step_{shape}_over_timm": step_ratio(shape) for shape in ("bamboo-base", "vit-base")}
    ratios |= {**pass_ratios(), "cached_probe_gain": cache_gain()}
    torch.set_num_threads(threads)
    return ratios


if __name__ == "__main__":
    for name, ratio in bench_finetune().items():
        print(f"{name:<32} {ratio:.2f}")
