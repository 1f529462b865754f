"""Small runs of masked language modelling, shared by the tests."""

from pathlib import Path

import torch

from bamboo.cli import main
from tests.runs import CONFIGS

TINY = [
    *("--model.init_args.shape", '{"depth": 2, "width": 32, "heads": 2}'),
    *("--model.init_args.recipe.effective_batch", "0"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]


def fit(*args: str, config: str = "pretrain/text_quickstart.yaml") -> int:
    """`bamboo fit` with a tiny masked language model; its exit code."""
    return main(["fit", "--config", str(CONFIGS / config), *TINY, *args])


def corpus_options(corpus: Path) -> list[str]:
    """To train on a packed corpus in small blocks, eight a step."""
    data = ["--data=bamboo.text.data.PackedCorpus", f"--data.init_args.root={corpus}", "--data.init_args.batch_size=8"]
    return [*data, "--data.init_args.block_length=32", "--model.init_args.vocab_size=200"]


def last(folder: Path, name: str = "text_quickstart", version: int = 0) -> Path:
    """The last checkpoint of a run below `folder`."""
    return folder / "runs" / name / f"version_{version}" / "checkpoints" / "last.ckpt"


def saved(module, path, tokenizer):
    """A checkpoint of a module whose weights were moved, as Lightning writes it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "tokenizer": tokenizer}
    torch.save(content, path)
    return path
