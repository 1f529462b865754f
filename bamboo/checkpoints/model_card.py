"""The README.md of an exported folder: a model card of Hugging Face, which says what is known and nothing else."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bamboo.checkpoints.card_text import card_text, is_masked_autoencoder
from bamboo.checkpoints.exported import Exported, read_exported
from bamboo.checkpoints.history import Data, History, read_history, without_folders
from bamboo.checkpoints.measurements import NEIGHBOURS, Number
from bamboo.checkpoints.reading import read_source
from bamboo.checkpoints.sources import find_source
from bamboo.errors import InputError
from bamboo.files import write_text

NAME = "README.md"
MARK = "\n<!-- Written by bamboo export, which replaces this file for as long as its text has the SHA-256 {}. -->\n"
METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "F1"),
    "matthews": ("matthews_correlation", "Matthews correlation"),
    "pearson": ("pearsonr", "Pearson correlation"),
    "spearman": ("spearmanr", "Spearman correlation"),
}
"""The hub's id and a name for people of what validation logs; losses of one's own making are no results there."""


def check_license(license: str) -> str:
    """A licence as Hugging Face's hub spells its ids; `InputError` for what cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", license, re.ASCII):
        raise InputError(f"{license!r} is no id of a licence: give one like mit or apache-2.0, or other")
    return license.lower()


def check_folder(folder: str | Path) -> None:
    """Raise `InputError` where a folder has a README.md that `write_card` did not write: it would be lost."""
    path = Path(folder) / NAME
    try:
        text = path.read_bytes().decode(errors="replace") if path.exists() else None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if text is not None and text != _marked(text[: text.rfind("\n<!--")]):
        raise InputError(f"{path} was written or changed by hand, and would be replaced: move it, or export elsewhere")


def write_card(source: str | Path, folder: str | Path, license: str | None = None) -> Path:
    """Write the model card of an exported folder, whole or not at all; returns its path.

    Args:
        source: what was exported. Where it is RUN/checkpoints/FILE, the configuration and the logs of the run are read.
        folder: what `export` or `export_text` wrote, as `timm` or `hf`.
        license: an id of Hugging Face's hub; by default the card says that none was stated.

    Raises:
        InputError: for what is no id of a licence, or a README.md that an export did not write.
    """
    license = None if license is None else check_license(license)
    check_folder(folder)
    opened = find_source(source)
    exported, history = read_exported(folder), read_history(opened.content, opened.path)
    origin, assumed = without_folders(str(source)), () if opened.kind == "text" else _assumed(source)
    data = ModelCardData(
        license=license,
        library_name=exported.library,
        pipeline_tag=exported.model.task,
        base_model=origin.hub or (history.start.hub if history.start else None),
        datasets=[history.data.hub] if history.data and history.data.hub else None,
        tags=[
            "bamboo",
            *exported.model.tags,
            *(["masked-autoencoder"] if is_masked_autoencoder(history.arguments) else []),
        ],
        **_results(exported, history),
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{card_text(exported, history, origin.name, license, assumed)}"
    return write_text(Path(folder) / NAME, _marked(ModelCard(text).content))


def _assumed(source: str | Path) -> tuple[str, ...]:
    """What was taken for granted of a model of images, because its source does not say it."""
    model = read_source(source)
    pixels = () if model.arguments["mean"] else ("nothing says how pixels are standardised: the usual numbers taken",)
    return (*model.notes, *pixels)


def _marked(text: str) -> str:
    """A text, and below it a line by which a later export knows that nobody has changed it."""
    return text + MARK.format(hashlib.sha256(text.encode()).hexdigest())


def _results(exported: Exported, history: History) -> Mapping[str, Any]:
    """What was measured of just these weights, as evaluation results under the name of the folder."""
    found = [(number, _metric(number)) for number in history.numbers if number.of_these_weights]
    if not history.data or not any(metric for _, metric in found):
        return {}
    results = [_result(exported, history.data, number, *metric) for number, metric in found if metric]
    return {"model_name": exported.name, "eval_results": results}


def _metric(number: Number) -> tuple[str, str] | None:
    if number.name.startswith(NEIGHBOURS):
        return "accuracy", f"{NEIGHBOURS}, frozen features"
    name = number.name.removeprefix("val/")
    kind, label = METRICS.get(re.split("[_/]", name)[0], ("", ""))
    return (kind, label if name in METRICS else f"{label} ({name})") if kind else None


def _result(exported: Exported, data: Data, number: Number, kind: str, label: str) -> EvalResult:
    return EvalResult(
        task_type="image-classification" if number.name.startswith(NEIGHBOURS) else exported.model.task,
        dataset_type=data.hub or data.kind.lower(),
        dataset_name=data.name,
        dataset_split="validation",
        metric_type=kind,
        metric_name=label,
        metric_value=round(number.value, 6),
    )
