"""Small runs of classifiers by the real command, on digits of 16 pixels."""

from pathlib import Path

from bamboo.cli import main
from tests.runs import CONFIGS

SIZES = [
    *("--model.init_args.shape", '{"depth": 2, "width": 32, "heads": 2}'),
    *("--model.init_args.image_size", "16", "--data.init_args.image_size", "16"),
    *("--model.init_args.recipe.warmup_share", "0.5"),  # for runs shorter than the warm-up of their file
    *("--model.init_args.recipe.effective_batch", "0"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]
SHORT = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]


def run(verb: str, *args: str, config: str = "scratch_digits") -> int:
    """`bamboo fit` and the like with a tiny classifier; the exit code."""
    return main([verb, "--config", str(CONFIGS / f"finetune/{config}.yaml"), *SIZES, *args])


def pretrain(*args: str) -> int:
    """`bamboo fit` of a tiny masked autoencoder of the same size."""
    decoder = ["--model.init_args.decoder_shape", '{"depth": 1, "width": 32, "heads": 2}']
    return main(["fit", "--config", str(CONFIGS / "pretrain/quickstart.yaml"), *SIZES, *decoder, *args])


def last(folder: Path, name: str = "scratch-digits", version: int = 0) -> Path:
    """The last checkpoint of a run below `folder`."""
    return folder / "runs" / name / f"version_{version}" / "checkpoints" / "last.ckpt"
