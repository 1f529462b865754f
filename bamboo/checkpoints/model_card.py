"""The README.md of an exported folder: a model card of Hugging Face, which says what is known and nothing else."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from bamboo.checkpoints.exporting import loading_calls
from bamboo.checkpoints.reading import read_source
from bamboo.checkpoints.sources import find_source, read_config
from bamboo.checkpoints.trained import hub_name, plain, read_measured, read_recipe
from bamboo.errors import InputError
from bamboo.files import write_text
from bamboo.shapes import Patches, Shape, encoder_flops

MARK = "<!-- Written by bamboo export, which replaces this file for as long as this line stands in it. -->"
TASKS = {
    "ForPreTraining": ("image-feature-extraction", "A vision transformer"),
    "ForImageClassification": ("image-classification", "A vision transformer that names the class of an image"),
    "ForMaskedLM": ("fill-mask", "A masked language model"),
    "ForCausalLM": ("text-generation", "A causal language model"),
    "LMHeadModel": ("text-generation", "A causal language model"),
    "ForSequenceClassification": ("text-classification", "A classifier of texts"),
    "": ("feature-extraction", "An encoder of texts"),
}
"""By the end of the name of a class of transformers, the hub's name of its task, and what it is."""
OBJECTIVES = {
    "decoder_shape": "Masked autoencoding (He et al. 2022), without labels.",
    "task": "Fine-tuned on texts.",
    "num_classes": "Trained to name the classes of images.",
    "pool": "Trained to name the classes of texts; the head is left out.",
    "mask_ratio": "Masked language modelling (Devlin et al. 2019).",
}
"""What a model was trained for, by the first of these hyperparameters that it has."""
METRICS = {"top1": "accuracy", "top5": "accuracy", "nearest": "accuracy", "accuracy": "accuracy", "f1": "f1"}
"""The hub's names of what is logged, by its first word; a loss of one's own making is no result there."""
TEXT = """
# {name}

{what}, exported by Bamboo from `{origin}`. Licence: {licence}.

{sizes}

## Training

{training}

## Measured

{measured}

## Loading

With this folder as `{name}` in the current one:

```python
{calls}
```

From the hub, NAMESPACE/NAME takes the place of `{name}`, and in a call of timm `hf-hub:` that of `local-dir:`.

## Limits

It may do for data like those that it was trained on. Nothing is known here beyond what stands above: neither of other
data, nor of robustness, nor of whether it treats groups of people alike.

## Citation

The question of how deep and how narrow is that of Xue et al., "A Study on Transformer Configuration and Training
Objective", International Conference on Machine Learning, 2023.

{mark}
"""


def check_card(folder: str | Path, license: str | None = None) -> None:
    """Raise `InputError` for what is no id of a licence, or where a README.md without our mark would be lost."""
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", license, re.ASCII):
        raise InputError(f"{license!r} is no id of a licence: give one like mit or apache-2.0, or other")
    path = Path(folder) / "README.md"
    if path.exists() and not (path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")):
        raise InputError(f"{path} is no card of bamboo export, or no longer one: move it, or export elsewhere")


def write_card(source: str | Path, folder: str | Path, license: str | None = None) -> Path:
    """Write the model card of an exported folder, whole or not at all; returns its path.

    Args:
        source: what was exported. Where it is RUN/checkpoints/FILE, the configuration and the logs of the run are read.
        folder: what `export` or `export_text` wrote, as `timm` or `hf`.
        license: an id of Hugging Face's hub; by default the card says that none was stated.

    Raises:
        InputError: for what is no id of a licence, or a README.md without the mark of an export.
    """
    check_card(folder, license)
    folder, opened = Path(folder), find_source(source)
    name, config, place = folder.resolve().name, read_config(folder / "config.json"), (opened.path or folder).resolve()
    run = place.parents[1] if place.parent.name == "checkpoints" else None
    kind = config.get("architectures", ["ForImageClassification" if config.get("num_classes") else "ForPreTraining"])[0]
    task, what = next(said for end, said in TASKS.items() if kind.endswith(end))
    recipe = read_recipe(opened.content, run)
    measured = read_measured(opened.content, run) if recipe else {}
    notes, calls = () if opened.kind == "text" else read_source(source).notes, loading_calls(folder, name)
    data_class, data = _data(recipe)
    results = _results(measured, task, data_class, data)
    front = ModelCardData(
        license=license and license.lower(),
        library_name="timm" if "architecture" in config else "transformers",
        pipeline_tag=task,
        base_model=hub_name(str(source)) or hub_name(recipe.get("start", "")),
        datasets=[hub] if (hub := hub_name(data)) else None,
        tags=["bamboo"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    text = TEXT.format(
        name=name,
        what=what,
        origin=plain(str(source)),
        licence=front.license or "none was stated",
        sizes=_table(_sizes(config, folder)) + (f"\n\nNot certain: {'; '.join(notes)}." if notes else ""),
        training=_training(recipe) if recipe else "How it was trained is not known here: ask where it came from.",
        measured=_table({tag: f"{value:.5g}" for tag, value in measured.items()}) if measured else "Nothing is known.",
        calls="\n".join([*sorted({f"import {call.partition('.')[0]}" for call in calls}), "", *calls]),
        mark=MARK,
    )
    return write_text(folder / "README.md", f"---\n{front.to_yaml()}\n---\n{text}")


def _data(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The class of the data, and their name where one is configured."""
    data = recipe.get("data", {})
    options = data.get("init_args", {})
    name = next((str(options[key]) for key in ("name", "root", "train") if key in options), "")
    return data.get("class_path", "").rpartition(".")[2], name


def _results(measured: Mapping[str, float], task: str, data_class: str, data: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification" if tag.startswith("probe/") else task,
            dataset_type=hub_name(data) or data_class.lower(),
            dataset_name=data or data_class,
            metric_type=METRICS[word],
            metric_name=tag,
            metric_value=round(value, 6),
        )
        for tag, value in measured.items()
        if (word := tag.partition("/")[2].partition("_")[0]) in METRICS and data_class
    ]


def _sizes(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Shape, parameters, input and FLOPs of what a folder holds, by name; None where its configuration does not say."""
    sizes = config.get("model_args", config)  # under timm's names or those of transformers
    depth, width = sizes.get("depth", sizes.get("num_hidden_layers")), sizes.get("embed_dim", sizes.get("hidden_size"))
    heads = sizes.get("num_heads", sizes.get("num_attention_heads"))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (no mapping)
    rows = {"depth x width": depth and f"{depth}x{width}", "heads": heads, "parameters": f"{parameters:,}"}
    if "patch_size" not in sizes:
        return {**rows, "vocabulary": config.get("vocab_size")}
    size, channels = sizes.get("img_size", sizes.get("image_size")), sizes.get("in_chans", sizes.get("num_channels"))
    patches = Patches.of(size, sizes["patch_size"], channels)
    shape = Shape.of(depth, width, heads, sizes.get("intermediate_size") or int(width * sizes["mlp_ratio"]))
    rows["image, patch, channels"] = f"{'x'.join(map(str, patches.image_size))} px, {patches.patch_size} px, {channels}"
    return {**rows, "FLOPs of the encoder for an image": f"{encoder_flops(shape, patches) / 1e9:.4g} GFLOPs"}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def _training(recipe: Mapping[str, Any]) -> str:
    said = (text for key, text in OBJECTIVES.items() if key in recipe.get("model", {}))
    what = next(said, "The checkpoint does not say what it was trained for.")
    start = f" It started from the weights of `{recipe['start']}`." if "start" in recipe else ""
    data = f"Data: {' '.join(filter(None, _data(recipe))) or 'not known here'}."
    configured = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return f"{what}{start} {data}\n\n```yaml\n{configured}```"
