"""Small runs of the real command, shared by the tests."""

from pathlib import Path
from typing import Any

import torch

from bamboo.cli import main

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
QUARTER = ["--data.init_args.fraction", "0.25", "--data.init_args.batch_size", "32"]
"""A quarter of the digits in a quarter of the batch: 11 steps in an epoch, as all of them have."""
SHORT_WARMUP = ["--model.init_args.recipe.warmup_share", "0.5"]
"""For runs that are shorter than the warm-up of their file."""
TINY = [
    *("--model.init_args.shape", '{"depth": 2, "width": 32, "heads": 2}'),
    *("--model.init_args.decoder_shape", '{"depth": 1, "width": 32, "heads": 2}'),
    *SHORT_WARMUP,
    *("--model.init_args.recipe.effective_batch", "0"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]


def fit(*args: str, config: str = "pretrain/quickstart.yaml") -> int:
    """`bamboo fit` with a tiny model; its exit code."""
    return main(["fit", "--config", str(CONFIGS / config), *TINY, *args])


def last(folder: Path, version: int = 0, name: str = "quickstart") -> Path:
    """The last checkpoint of a run below `folder`."""
    return folder / "runs" / name / f"version_{version}" / "checkpoints" / "last.ckpt"


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content."""
    return torch.load(path, weights_only=True)


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """What a run logged to TensorBoard under a tag, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def same(left: Any, right: Any) -> bool:
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
