"""Time to quality: how much sooner a faster recipe is as good as the reference at the end of its training.

    python -m tests.benchmarks.quality --data FOLDER --out runs/quality

The reference is He et al. 2022: Xavier matrices, a decoder of self-attention, every hidden patch predicted. Faster
recipes start with small residual branches (`init: depth`) and predict a share of the hidden patches. All train on the
same images, views and masks. Learning rates, and which of the faster recipes is reported, are chosen on a seed that is
not reported. A faster recipe is trained for a share of the reference's time, with a schedule of that length.

Seconds are steps times the seconds of a step, which all sides take in turns. The peer is transformers' ViTMAE: from the
same weights its loss equals the reference's (`tests/vision/test_mae.py`), so it is timed and not trained again. Timings
and runs leave files in the folder, and what is there is not run again: so a GPU (`--device cuda`) can train what a
folder with the seconds of a CPU is judged by.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from bamboo.files import read_json, write_json, write_text
from bamboo.finetune.features import extract, normed_features
from bamboo.finetune.knn import nearest_neighbour_accuracy
from bamboo.optimizers import build_optimizer
from bamboo.recipes import Recipe, scheduled_lr
from bamboo.seeds import derive_seed
from bamboo.shapes import Patches, Shape
from bamboo.vision.data import ImageFolder
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pixels import PixelScale

from .bench_training import build_peer

IMAGE, PATCH, BATCH = 32, 4, 64
DECODER = Shape(4, 128, 4)
"""Beside an encoder of 2.7 M parameters what 8 x 512 is beside ViT-B: a third of them, and half of the FLOPs."""

RECIPES: dict[str, dict[str, Any]] = {
    "reference": {"init": "mae", "decoder": "self"},
    "half": {"init": "depth", "decoder": "self", "predict_ratio": 0.5},
    "cross": {"init": "depth", "decoder": "cross", "predict_ratio": 0.25},
}
RATES = (1.5e-3, 4e-3)
"""Learning rates of a batch to choose from."""
TUNING_SEED = 1000
LOSSES, PROBES = 12, 3
"""How often in a run the loss on held-out images is measured, and how often the nearest neighbours."""
HELD_OUT, BANK = 500, 1000
"""Held-out images that are measured on, and training images that their neighbours are looked for among."""


class Run(NamedTuple):
    """A training: its recipe, learning rate of a batch, optimizer steps and seed."""

    recipe: str
    rate: float
    steps: int
    seed: int

    @property
    def file(self) -> str:
        """The name of its CSV."""
        return f"{self.recipe}-{self.rate:g}-{self.steps}-seed{self.seed}.csv"


class Images:
    """Training views batch by batch, and held-out and training images to measure on, of a folder."""

    def __init__(self, root: str, seed: int, device: str) -> None:
        self.data = ImageFolder(root=root, image_size=IMAGE, batch_size=BATCH, crop_scale=0.6, seed=seed)
        train, held_out = self.data.sources.train, self.data.probe_loader(self.data.sources.val, HELD_OUT)
        self.held_out, self.bank = held_out, self.data.probe_loader(train, BANK)
        self.device, self.pixel_scale = torch.device(device), PixelScale(3).to(device)

    def scale(self, images: Tensor) -> Tensor:
        """Bytes (B, 3, H, W) as standardised pixels, on the device."""
        return self.pixel_scale(images.to(self.device))

    def views(self, steps: int) -> Iterator[Tensor]:
        """Standardised training views (B, 3, H, W) of so many steps."""
        loader, step, epoch = self.data.train_dataloader(), 0, 0
        while True:
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                if step == steps:
                    return
                yield self.scale(batch["image"])
                step += 1
            epoch += 1


def noise_of(*key: int | str, count: int) -> Tensor:
    """Noise (count, patches) whose lowest values stay visible."""
    generator = torch.Generator().manual_seed(derive_seed(*key))
    return torch.rand(count, (IMAGE // PATCH) ** 2, generator=generator)


def build(shape: Shape, recipe: str, seed: int) -> MaskedAutoencoder:
    """The masked autoencoder of a recipe; a seed draws the same numbers for all."""
    torch.manual_seed(seed)
    return build_mae(shape, IMAGE, PATCH, decoder_shape=DECODER, **RECIPES[recipe])


def train(shape: Shape, run: Run, images: Images) -> pd.DataFrame:
    """The course of a run: held-out loss and nearest neighbours after some of its steps."""
    model, recipe = build(shape, run.recipe, run.seed).to(images.device), Recipe(base_lr=run.rate)
    optimizer = build_optimizer(param_groups_weight_decay(model, recipe.weight_decay), recipe)
    rows = []
    for step, views in enumerate(images.views(run.steps)):
        for group in optimizer.param_groups:
            group["lr"] = scheduled_lr(step, 0.07 * run.steps, run.steps, run.rate)
        model(views, noise_of(run.seed, "mask", step, count=len(views)).to(images.device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done * LOSSES // run.steps > step * LOSSES // run.steps:
            probed = done * PROBES // run.steps > step * PROBES // run.steps
            rows.append(
                {"step": done, "loss": held_out_loss(model, images)} | (neighbours(model, images) if probed else {})
            )
            print(run, rows[-1], flush=True)
    return pd.DataFrame(rows)


@torch.no_grad()
def held_out_loss(model: MaskedAutoencoder, images: Images) -> float:
    """Mean loss of all hidden patches of held-out images, however few of them a training step predicts."""
    predicted, model.predicted = model.predicted, model.encoder.patch_embed.num_patches - model.visible
    losses = []
    for number, batch in enumerate(images.held_out):
        noise = noise_of("held out", number, count=len(batch["image"])).to(images.device)
        losses.append(model(images.scale(batch["image"]), noise).loss)
    model.predicted = predicted
    return float(torch.stack(losses[: HELD_OUT // BATCH]).mean())  # of whole batches


def neighbours(model: MaskedAutoencoder, images: Images) -> dict[str, float]:
    """Accuracy of nearest neighbours among training images, for held-out ones."""
    compute = normed_features(model.encoder, images.scale)
    parts = (extract(compute, loader, images.device) for loader in (images.bank, images.held_out))
    bank, queries = ((part["mean"].to(images.device), part["label"].to(images.device)) for part in parts)
    return {"neighbours": nearest_neighbour_accuracy(bank, queries)}


def course(shape: Shape, run: Run, args: argparse.Namespace) -> pd.DataFrame:
    """The CSV of a run, which is trained if there is none."""
    path = Path(args.out) / str(shape) / run.file
    if not path.exists():
        table = train(shape, run, Images(args.data, run.seed, args.device))
        write_text(path, table.to_csv(index=False))
    return pd.read_csv(path)


def step_seconds(shape: Shape, rounds: int, device: str) -> dict[str, float]:
    """Seconds of a training step by side, of the processor or the GPU, medians over rounds in which all take turns."""
    peer = build_peer(shape, Patches.of(IMAGE, PATCH), DECODER)
    models: dict[str, nn.Module] = {name: build(shape, name, 0) for name in RECIPES} | {"transformers": peer}
    models = {name: model.to(device) for name, model in models.items()}
    views, noise = torch.randn(BATCH, 3, IMAGE, IMAGE, device=device), noise_of("time", count=BATCH).to(device)
    optimizers = {
        name: build_optimizer(param_groups_weight_decay(model, 0.05), Recipe()) for name, model in models.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = now(device)
            model(views, noise=noise).loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            taken[name].append(now(device) - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}  # the first round warms up


def now(device: str) -> float:
    """Seconds, of the processor or, when all that it was given is done, of a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reached(table: pd.DataFrame, column: str, goal: float) -> float:
    """The step, interpolated, at which a column first is as good as a goal; NaN where it never is."""
    table = table.dropna(subset=[column])
    sign = -1 if column == "loss" else 1
    better = sign * (table[column] - goal)
    if not (better >= 0).any():
        return float("nan")
    last = int((better >= 0).to_numpy().argmax())
    if last == 0:
        return float(table["step"].iloc[0])
    (before, after), (low, high) = table["step"].iloc[last - 1 : last + 1], better.iloc[last - 1 : last + 1]
    return float(before + (after - before) * -low / (high - low))


def compare(shape: Shape, args: argparse.Namespace) -> pd.DataFrame:
    """Train what is needed at a shape; a row for each seed and measure of quality."""
    steps, path = args.steps, Path(args.out) / str(shape) / "seconds.json"
    if not path.exists():
        write_json(path, step_seconds(shape, args.rounds, args.device))
    seconds = read_json(path)
    print(f"{shape}: seconds of a step {seconds}", flush=True)

    def length(recipe: str, whole: int) -> int:
        times = 1 if recipe == "reference" else args.times
        return round(whole * seconds["reference"] / seconds[recipe] / times)

    def final_loss(run: Run) -> float:
        return float(course(shape, run, args)["loss"].iloc[-1])

    chosen = {}
    for recipe in RECIPES:  # each at half of its length
        tries = [Run(recipe, rate, length(recipe, steps // 2), TUNING_SEED) for rate in RATES]
        chosen[recipe] = min(tries, key=final_loss)
        print(
            f"{shape}: {recipe} takes {chosen[recipe].rate:g}: {[round(final_loss(run), 4) for run in tries]}",
            flush=True,
        )
    fast = min((run for name, run in chosen.items() if name != "reference"), key=final_loss).recipe
    rows = []
    for seed in range(args.seeds):
        tables = {
            name: course(shape, Run(name, chosen[name].rate, length(name, steps), seed), args)
            for name in ("reference", fast)
        }
        for column in ("loss", "neighbours"):
            goal = float(tables["reference"][column].iloc[-1])
            needed = reached(tables[fast], column, goal)
            end, length_of_fast = tables[fast][[column, "step"]].iloc[-1]
            passed = reached(tables["reference"], column, end)  # of the schedule of its whole length
            took = {"transformers": seconds["transformers"] * steps, "reference": seconds["reference"] * steps}
            took["fast"] = seconds[fast] * needed
            flops = {name: 3 * build(shape, name, 0).flops * BATCH for name in ("reference", fast)}
            rows.append(
                {"shape": str(shape), "seed": seed, "quality": column, "goal": goal, "fast": fast}
                | {"fast_end": end, "steps": needed}
                | {"times_faster_to_fast_end": seconds["reference"] * passed / (seconds[fast] * length_of_fast)}
                | {f"{name}_seconds": value for name, value in took.items()}
                | {f"times_faster_than_{name}": took[name] / took["fast"] for name in ("transformers", "reference")}
                | {"times_fewer_flops": flops["reference"] * steps / (flops[fast] * needed)}
            )
    return pd.DataFrame(rows)


def _shape(text: str) -> Shape:
    return Shape(*map(int, text.split(",")))


def main() -> None:
    """Train, print the table and write it as `quality.csv`."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quality", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of images with train/ and test/, a sub-folder per class")
    parser.add_argument("--out", default="runs/quality", help="folder for the CSVs")
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=[Shape(24, 96, 3), Shape(6, 192, 6)], help="as DEPTH,WIDTH,HEADS"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500, help="of the reference, with batches of 64")
    parser.add_argument("--times", type=float, default=3.0, help="how many times shorter a faster recipe trains")
    parser.add_argument("--device", default="cpu", help="that trains, and is timed")
    parser.add_argument("--rounds", type=int, default=15, help="in which steps are timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.concat([compare(shape, args) for shape in args.shapes])
    write_text(Path(args.out) / "quality.csv", table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
