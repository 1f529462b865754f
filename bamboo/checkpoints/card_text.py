"""The sections of a model card, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from bamboo.checkpoints.exported import Exported
from bamboo.checkpoints.history import History
from bamboo.checkpoints.reading import DEFAULTS
from bamboo.shapes import find_shape

CITATION = """\
The question of how deep and how narrow, which Bamboo asks, is that of:

```bibtex
@inproceedings{xue2023study,
  title     = {A Study on Transformer Configuration and Training Objective},
  author    = {Xue, Fuzhao and Chen, Jianghai and Sun, Aixin and Ren, Xiaozhe and Zheng, Zangwei and
               He, Xiaoxin and Chen, Yongming and Jiang, Xin and You, Yang},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}
```"""
LIMITS = {
    "image-classification": "It names the classes that it was trained on and no others, for images like those.",
    "image-feature-extraction": "It gives features and no answers: train a head on them, or fine-tune it, for a task.",
    "feature-extraction": "It gives features and no answers: train a head on them, or fine-tune it, for a task.",
    "fill-mask": "It guesses masked words of texts like those that it was trained on, and writes no texts of its own.",
    "text-classification": "It knows the labels that it was trained on and no others, for texts like those.",
}
UNKNOWN = (
    "Nothing is known here beyond the numbers above: neither of other data, nor of robustness, nor of whether it "
    "treats groups of people alike."
)
SHOWN = 20
"""Names of classes that are written out."""


def card_text(
    exported: Exported, history: History, origin: str, license: str | None, assumed: Sequence[str] = ()
) -> str:
    """All that stands below the front matter.

    Args:
        exported: the folder.
        history: of its training.
        origin: the name of the file or model that was exported.
        license: its licence, if one was stated.
        assumed: what was taken for granted in reading it.
    """
    sections = {
        "Shape": table(exported.model.sizes) + ("\n\nNot certain: " + "; ".join(assumed) + "." if assumed else ""),
        "Training": _training(history, origin),
        "Measured": _measured(history),
        "Loading": _loading(exported),
        "Input": table(exported.model.inputs) + _classes(exported.model.classes),
        "Limits": f"{LIMITS[exported.model.task]} {UNKNOWN}",
        "Licence": f"`{license}`" if license else "No licence was stated.",
        "Citation": CITATION,
    }
    head = f"# {exported.name}\n\n{exported.model.what}. Bamboo exported it from `{origin}`."
    return "\n\n".join([head, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def _loading(exported: Exported) -> str:
    modules = sorted({call.partition(".")[0] for call in exported.calls})
    code = "\n".join(["```python", *(f"import {name}" for name in modules), "", *exported.calls, "```"])
    timm = ", and in timm's call `hf-hub:NAMESPACE/NAME` that of `local-dir:...`" if "timm" in modules else ""
    hub = f"From Hugging Face's hub, NAMESPACE/NAME takes the place of `{exported.name}`{timm}."
    return f"With this folder as `{exported.name}` in the current one:\n\n{code}\n\n{hub}"


def table(rows: Mapping[str, str]) -> str:
    """A table of two columns; rows without a value are left out."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def is_masked_autoencoder(arguments: Mapping[str, Any]) -> bool:
    """Whether hyperparameters are those of a masked autoencoder."""
    return "decoder_shape" in arguments


def objective(arguments: Mapping[str, Any]) -> str:
    """What was trained for, by the hyperparameters of the checkpoint."""
    if is_masked_autoencoder(arguments):
        return _masked_autoencoding({**DEFAULTS, **arguments})
    if "task" in arguments:
        return f"Fine-tuned on texts (task `{arguments['task']}`)."
    if "num_classes" in arguments:
        return f"Supervised training on {arguments['num_classes']} classes{_regularised(arguments)}."
    if "pool" in arguments:
        return "Supervised training from fresh weights to name the class of a text; the head is left out."
    if "mask_ratio" in arguments:
        share = f"{arguments['mask_ratio']:.0%} of the tokens are to be guessed"
        return f"Masked language modelling (Devlin et al. 2019): {share}."
    return "The checkpoint does not say what it was trained for."


def _masked_autoencoding(arguments: Mapping[str, Any]) -> str:
    share, decoder = arguments["predict_ratio"], find_shape(arguments["decoder_shape"])
    kind = {"cross": "cross-attention", "self": "self-attention"}[arguments["decoder"]]
    return (
        f"Masked autoencoding (He et al. 2022), without labels: {arguments['mask_ratio']:.0%} of the patches are "
        f"hidden, and a {kind} decoder of {decoder} predicts the {'normalised ' * arguments['norm_pix']}pixels of "
        f"{'all' if share == 1 else format(share, '.0%')} of them."
    )


def _regularised(arguments: Mapping[str, Any]) -> str:
    said = [
        f"{key.replace('_', ' ')} {arguments[key]:g}"
        for key in ("label_smoothing", "mixup", "cutmix", "drop_path")
        if arguments.get(key)
    ]
    frozen = ", on a frozen encoder" if arguments.get("freeze") else ""
    return frozen + (f", with {', '.join(said)}" if said else "")


def _training(history: History, origin: str) -> str:
    if not history.arguments:
        return f"Converted from `{origin}`. How that was trained is not known here: ask where it came from."
    start = f" It started from the weights of `{history.start.name}`." if history.start else ""
    data = f"Data: {history.data.name}." if history.data else "On which data is not known here."
    recipe = f"\n\n{table(history.recipe)}" if history.recipe else ""
    return f"{objective(history.arguments)}{start} {data}{recipe}"


def _measured(history: History) -> str:
    if not history.numbers:
        return "Neither the checkpoint nor a log of its run holds a measured number."
    return "In validation; accuracies are shares of one:\n\n" + table(
        {f"`{n.name}`": f"{n.value:.4f}" for n in history.numbers}
    )


def _classes(classes: tuple[str, ...]) -> str:
    if not classes:
        return ""
    more = f" and {len(classes) - SHOWN} more, which `config.json` lists" if len(classes) > SHOWN else ""
    return f"\n\nClasses: {', '.join(classes[:SHOWN])}{more}."
