"""`bamboo profile`: from names of models and data to a folder of numbers, figures and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bamboo.errors import InputError
from bamboo.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from .maps import Maps
    from .model_sources import Opened

DEFAULT = ("stream", "branches", "attention")
UNTRAINED = 5
"""Networks that are drawn for a baseline: one alone may be far from the others."""


def profile_command(
    models: list[str],
    *,
    data: str,
    out: Path,
    baseline: bool = False,
    samples: int = 256,
    batch_size: int = 32,
    mask_ratio: float = 0.0,
    measures: list[str] = [*DEFAULT],  # noqa: B006 (never changed)
    tokens: Literal["patches", "all"] = "patches",
    blocks: str | None = None,
    prefix: int | None = None,
    image_size: int | None = None,
    max_length: int = 128,
    pictures: int = 3,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "32",
    num_workers: int = 0,
    by_line: bool = False,
) -> None:
    """Measure how alike the tokens of models grow with depth, and write numbers, figures and a report.

    Args:
        models: each is a checkpoint of this project or of the reference MAE release, timm:NAME, timm:NAME@FILE,
            hf:FOLDER or hf:NAME, with a label before it if wanted (label=MODEL); timm:NAME@random and hf:FOLDER@random
            are the architecture with random weights.
        data: digits, a SOURCE of images (a folder, tar or Parquet files, hf:NAME; what is validated on is read), a
            text file, a folder of text files, or a corpus that `bamboo tokenize` wrote.
        out: folder for profile.json, profile.csv, samples.npz, figures as PNG and SVG, and report.html.
        baseline: add each architecture with fresh weights, drawn five times: their mean, dashed, and their range.
        samples: number of images or pieces of text, evenly spread over the data.
        batch_size: samples at a time; it does not change the result.
        mask_ratio: share of patches to leave out at random, as in masked pretraining; 0 for whole images.
        measures: names of measures, or of groups of them: stream, branches, attention, ranks, pairs, bound, all.
        tokens: count patches (in texts: words) alone, or all, with class token and registers.
        blocks: path of the list of blocks in the models, such as encoder.blocks, where it cannot be found or there are
            several.
        prefix: number of tokens before the patches (class token first, then registers), where they cannot be found.
        image_size: side of the images in pixels, where it is not to be the model's own.
        max_length: tokens of a piece of text.
        pictures: number of sample images for maps of token similarity.
        seed: of masks and of random weights.
        device: auto, cpu, cuda, cuda:1 and so on.
        precision: run models in fp32 (`32`) or under `bf16` autocast; `auto` is bf16 on a GPU that has it. Measures are
            always in fp32.
        num_workers: processes that read images.
        by_line: take each line of text files for a piece of text of its own, such as a sentence.

    Raises:
        InputError: where a model or the data cannot be used, in one line.
    """
    from dataclasses import replace

    from bamboo.processes import is_first_process
    from bamboo.tables import table

    from .data_sources import check_data, open_data
    from .measures.definitions import choose
    from .profiles import Comparison, across_networks
    from .profiling import profile
    from .report import summary_rows, write_report

    for name, number in {"samples": samples, "batch_size": batch_size, "max_length": max_length}.items():
        if number < 1:
            raise InputError(f"{name} must be positive, got {number}")
    choose(measures)
    check_data(data)
    first = is_first_process()
    place, opened = _device(device), _open_all(models, image_size, seed, baseline, blocks)
    options: dict[str, Any] = {"measures": measures, "tokens": tokens, "mask_ratio": mask_ratio, "samples": samples}
    options |= {"blocks": blocks, "prefix": prefix, "precision": precision, "seed": seed}
    profiles, maps = [], []
    for model in opened:
        print(f"{model.label}: {model.source}", *model.notes, sep="\n  ")
        results = []
        for network in networks_of(model, seed):
            loader = open_data(data, model, samples, batch_size, max_length, num_workers, by_line, shared=True)
            results.append(profile(network.to(place), loader, **options, label=model.label, progress=first))
            network.cpu()
        result = across_networks(results) if model.baseline else results[0]
        settings = {"source": model.source, "data": f"{data}, line by line" if by_line else data, **result.settings}
        notes = (*model.notes, *result.notes)
        profiles.append(replace(result, settings=settings, notes=notes, baseline=model.baseline))
        if first and pictures and model.size and not mask_ratio:
            model.model.to(place)
            maps.append(maps_of(model, data, pictures, blocks, prefix))
            model.model.cpu()
    if not first:
        return
    comparison = Comparison(tuple(profiles))
    paths = comparison.save(out) + write_report(Path(out) / "report.html", comparison, maps)
    print("token similarity after the last block", table(summary_rows(comparison)), sep="\n")
    print(*(f"wrote {path}" for path in paths), sep="\n")


def networks_of(opened: "Opened", seed: int) -> "Iterator[nn.Module]":
    """The network of an opened model; of a baseline as many as are drawn for it, one at a time."""
    from .model_sources import fresh_copy

    yield opened.model
    if opened.baseline:
        yield from (fresh_copy(opened, seed + number).model for number in range(1, UNTRAINED))


def maps_of(opened: "Opened", data: str, count: int, blocks: str | None = None, prefix: int | None = None) -> "Maps":
    """Maps of token similarity over the first images of the data."""
    import torch

    from .data_sources import open_data
    from .inputs import read_batch
    from .maps import similarity_maps

    batches = [read_batch(batch).images for batch in open_data(data, opened, count, count)]
    images = torch.cat([images for images in batches if images is not None])[:count]
    return similarity_maps(opened.model, images, opened.label, blocks, prefix)


def _device(name: str) -> "torch.device":
    import torch

    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return place


def _open_all(
    models: list[str], image_size: int | None, seed: int, baseline: bool, blocks: str | None
) -> list["Opened"]:
    """All models and their baselines, so that a wrong name shows before anything runs."""
    from .architectures import find_stack
    from .model_sources import fresh_copy, open_model

    opened = []
    for text in models:
        model = open_model(text, image_size, seed, blocks)
        find_stack(model.model, blocks)
        opened += [model, fresh_copy(model, seed)] if baseline else [model]
    labels = [model.label for model in opened]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"two models are called {twice!r}: give them labels, as in a=MODEL b=MODEL")
    return opened
