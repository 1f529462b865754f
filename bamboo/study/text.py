"""What is measured of a trained encoder of texts."""

from pathlib import Path
from typing import Any

import torch

from bamboo.analysis.monitor import find_encoder
from bamboo.analysis.profiles import Profile
from bamboo.analysis.profiling import profile
from bamboo.files import read_file
from bamboo.fit.lightning import build

from .folders import checkpoint
from .lengths import measure_lengths
from .results import TRAIN, UNTRAINED, WHOLE
from .spec import Cell, Study

METRICS = {
    "masked": {"val/loss": "loss", "val/accuracy": "masked_accuracy", "val/most_frequent_token": "most_frequent_token"},
    "causal": {
        **{"val/loss": "loss", "val/perplexity": "perplexity", "val/accuracy": "next_accuracy"},
        "val/most_frequent_token": "most_frequent_token",
    },
    "supervised": {"val/accuracy": "accuracy"},
}
"""What validation logs, by the kind of objective, and what it is called in a result."""


def measure(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, Profile], dict[str, float]]:
    """Profiles of the untrained and the trained encoder, and numbers of validation."""
    cli = build((folder / "train.yaml").read_text(encoding="utf-8"))
    module, data = cli.model, cli.datamodule
    last = read_file(checkpoint(folder, "train"))
    module.on_load_checkpoint(last)
    module.load_state_dict(last["state_dict"])
    (logged,) = cli.trainer.validate(module, data, verbose=False)
    numbers = {name: float(logged[metric]) for metric, name in METRICS[study.objectives[cell.objective].kind].items()}
    numbers["parameters"] = sum(p.numel() for p in module.parameters())
    encoder: Any = find_encoder(module)  # with its prediction head, where it has one
    numbers["encoder_parameters"] = sum(p.numel() for p in getattr(encoder, "base_model", encoder).parameters())
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    train, held_out = data.probe_loaders(study.evaluation.samples)
    profiles = {}
    for label, state, loader in ((UNTRAINED, "start", held_out), (WHOLE, "last", held_out), (TRAIN, "last", train)):
        module.load_state_dict(read_file(folder / "train" / f"{state}.ckpt")["state_dict"])
        profiles[label] = profile(encoder, loader, study.evaluation.measures)
    if study.evaluation.lengths and study.objectives[cell.objective].kind == "causal":
        module.load_state_dict(last["state_dict"])
        numbers |= measure_lengths(encoder.eval(), data, study.evaluation.lengths, study.evaluation.windows, folder)
    return profiles, numbers
