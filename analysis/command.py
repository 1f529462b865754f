"""`bamboo profile`: from names of models and data to a folder of numbers, figures and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bamboo.errors import InputError

if TYPE_CHECKING:
    import torch

    from .model_sources import Opened
    from .profiles import Comparison

DEFAULT = ("stream", "branches", "attention")


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
    precision: Literal["32", "bf16"] = "32",
    num_workers: int = 0,
    by_line: bool = False,
) -> None:
    """Measure how alike the tokens of models grow with depth, and write numbers, figures and a report.

    Args:
        models: each is a checkpoint of this project or of the reference MAE release, timm:NAME, timm:NAME@FILE,
            hf:FOLDER or hf:NAME, with a label before it if wanted (label=MODEL); timm:NAME@random and hf:FOLDER@random
            are the architecture with random weights.
        data: digits, a folder of images (of train/ and val/ the latter), a text file, a folder of text files, or a
            corpus that `bamboo tokenize` wrote.
        out: folder for profile.json, profile.csv, samples.npz, figures as PNG and SVG, and report.html.
        baseline: add each architecture with freshly drawn weights, as a dashed line.
        samples: number of images or pieces of text, evenly spread over the data.
        batch_size: samples at a time; it does not change the result.
        mask_ratio: share of patches to leave out at random, as in masked pretraining; 0 for whole images.
        measures: names of measures, or of groups of them: stream, branches, attention, ranks, pairs, all.
        tokens: count patches (in texts: words) alone, or all, with class token and registers.
        blocks: path of the list of blocks in the models, such as encoder.blocks, where it cannot be found or there are
            several.
        prefix: number of tokens before the patches (class token first, then registers), where they cannot be found.
        image_size: side of the images in pixels, where it is not to be the model's own.
        max_length: tokens of a piece of text.
        pictures: number of sample images for maps of token similarity.
        seed: of masks, of the bootstrap and of random weights.
        device: auto, cpu, cuda, cuda:1 and so on.
        precision: run models in fp32 or under bf16 autocast; measures are always in fp32.
        num_workers: processes that read images.
        by_line: take each line of text files for a piece of text of its own, such as a sentence.

    Raises:
        InputError: where a model or the data cannot be used, in one line.
    """
    from .data_sources import check_data, open_data
    from .definitions import choose
    from .figures import draw_all, maps_of
    from .plots import save_figure
    from .profiles import Comparison
    from .profiling import profile
    from .report import write_report

    _check(samples, batch_size, max_length, choose(measures))
    check_data(data)
    place, opened = _device(device), _open(models, image_size, seed, baseline, blocks)
    profiles, maps, said = [], [], f"{data}, line by line" if by_line else data
    for one in opened:
        print(f"{one.label}: {one.source}", *one.notes, sep="\n  ")
        one.model.to(place)
        loader = open_data(data, one, samples, batch_size, max_length, num_workers, by_line)
        found = profile(
            one.model,
            loader,
            measures,
            tokens,
            mask_ratio,
            samples,
            blocks,
            prefix,
            precision,
            seed,
            one.label,
            progress=True,
        )
        profiles.append(found.told(one.notes, one.baseline, source=one.source, data=said))
        maps += [] if mask_ratio else maps_of(one, data, pictures, blocks, prefix)
        one.model.cpu()
    comparison = Comparison(tuple(profiles))
    paths, sections = comparison.save(out), draw_all(comparison, maps)
    for section in sections:
        paths += save_figure(section.figure, Path(out) / section.name)
    paths.append(write_report(Path(out) / "report.html", comparison, sections))
    print(_summary(comparison), *(f"wrote {path}" for path in paths), sep="\n")


def _check(samples: int, batch_size: int, max_length: int, chosen: tuple[str, ...]) -> None:
    for name, value in {"samples": samples, "batch_size": batch_size, "max_length": max_length}.items():
        if value < 1:
            raise InputError(f"{name} must be positive, got {value}")
    if not chosen:
        raise InputError("no measure was chosen: name some with --measures")


def _device(name: str) -> "torch.device":
    import torch

    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return place


def _open(models: list[str], image_size: int | None, seed: int, baseline: bool, blocks: str | None) -> list["Opened"]:
    """All models and their baselines, so that a wrong name shows before anything runs."""
    from .architectures import find_stack
    from .model_sources import fresh_copy, open_model

    opened = []
    for text in models:
        one = open_model(text, image_size, seed, blocks)
        find_stack(one.model, blocks)
        opened += [one, fresh_copy(one, seed)] if baseline else [one]
    labels = [one.label for one in opened]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise InputError(f"two models are called {twice!r}: give them labels, as in a=MODEL b=MODEL")
    return opened


def _summary(comparison: "Comparison") -> str:
    """A line for each model: similarity after the last block, where it passes 0.5 and 0.9, and its slope."""
    from .intervals import say_first

    head = (
        "model",
        "blocks",
        "samples",
        "last",
        "95 % interval",
        "between",
        "excess",
        "passes 0.5",
        "passes 0.9",
        "slope",
    )
    rows = [head]
    for row in comparison.summary():
        if "last" in row:
            passes = (say_first(row[name]) for name in ("passes_0.5", "passes_0.9"))
            ends = f"{row['low']:.3f} to {row['high']:.3f}"
            numbers = (
                str(row["depth"]),
                str(row["samples"]),
                f"{row['last']:.3f}",
                ends,
                *(f"{row[name]:.3f}" if name in row else "" for name in ("between", "excess")),
                *passes,
                f"{row['slope']:.3f}",
            )
            rows.append((row["model"], *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(["token similarity", *lines])
