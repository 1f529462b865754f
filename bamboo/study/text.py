"""What is measured of a trained encoder of texts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bamboo.analysis.monitor import find_encoder
from bamboo.analysis.profiles import Profile, compare
from bamboo.analysis.profiling import profile
from bamboo.files import read_file
from bamboo.fit.lightning import build

from .cells import checkpoint, write_json
from .recording import read_record
from .spec import Cell, Evaluation, Study
from .vision import similarities

METRICS = {
    "masked": {"val/loss": "loss", "val/accuracy": "masked_accuracy", "val/most_frequent_token": "most_frequent_token"},
    "supervised": {"val/accuracy": "accuracy"},
}
"""What validation logs, by the kind of objective, and what it is called in a result."""


def evaluate(study: Study, cell: Cell, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Numbers and costs of a cell; profiles and the course of training go into files of its folder."""
    last, kind = checkpoint(folder, "train"), study.objectives[cell.objective].kind
    cli = build((folder / "train.yaml").read_text(encoding="utf-8"))
    content = read_file(last)
    cli.model.load_state_dict(content["state_dict"])
    (logged,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    numbers = {name: float(logged[metric]) for metric, name in METRICS[kind].items()}
    profiles = _profiles(cli, folder, study.evaluation)
    compare(profiles).save(folder / "profile")
    record = read_record(content)
    write_json(folder / "training.json", {"similarity": record["similarity"], "loss": record["losses"]})
    numbers |= similarities(profiles)
    numbers["activation_bytes"] = record["activation_bytes"]
    encoder: Any = find_encoder(cli.model)  # with its prediction head, where it has one
    numbers["encoder_parameters"] = sum(p.numel() for p in getattr(encoder, "base_model", encoder).parameters())
    return numbers, dict(record["cost"])


def _profiles(cli: Any, folder: Path, settings: Evaluation) -> dict[str, Profile]:
    """Of the untrained and the trained encoder, on held-out texts, and on training texts."""
    data, model = cli.datamodule, cli.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for label, state, loader in (
        ("untrained, held-out, whole", "start", data.val_dataloader()),
        ("trained, held-out, whole", "last", data.val_dataloader()),
        ("trained, train, whole", "last", data.train_dataloader()),
    ):
        model.load_state_dict(read_file(folder / "train" / f"{state}.ckpt")["state_dict"])
        encoder: nn.Module = find_encoder(model).to(device)
        found[label] = profile(encoder, loader, settings.measures, samples=settings.samples)
    return found
