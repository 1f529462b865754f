"""Measure a model over a data set in one pass, streaming: states are measured as they appear and forgotten."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from bamboo.errors import InputError
from bamboo.precision import Precision, autocast
from bamboo.processes import of_all_processes

from .architectures import find_stack
from .captures import capture
from .inputs import Batch, Feeder, Tokens, encoder_of, evaluating, read_batch, reads_text
from .measures.definitions import choose
from .measures.similarity_split import GROUPS, Place, Sums, pooled, united
from .profiles import Profile
from .recording import NEEDS_BRANCHES, NEEDS_MAPS, Key, Recorder

PACKAGES = ("bamboo-mae", "torch", "torchvision", "timm", "transformers", "numpy")


def profile(
    model: nn.Module,
    loader: Iterable[Any],
    measures: Sequence[str] = ("stream", "branches"),
    tokens: Tokens = "patches",
    mask_ratio: float = 0.0,
    samples: int | None = None,
    blocks: str | None = None,
    prefix: int | None = None,
    precision: Precision = "32",
    seed: int = 0,
    label: str | None = None,
    progress: bool = False,
) -> Profile:
    """How alike a model's tokens are after each block, over the samples of a loader.

    The model runs once over the data, without its head, in evaluation mode and without gradients, on the device where
    it is. States are not kept, only some kilobytes of numbers for each sample. The result does not depend on batch
    size, order of samples or number of workers, but for rounding. Where `torch.distributed` is initialised, each
    process profiles its own share of the data, and all get the result of all.

    Args:
        model: a timm, Hugging Face or torchvision model, a masked autoencoder, or any module with a list of blocks.
        loader: batches of images (B, C, H, W), bytes or standardised floats, alone, first in a tuple, or in a
            dictionary under `image` or `pixel_values`; or dictionaries with `input_ids`, `attention_mask` and
            `special_tokens_mask`.
        measures: names of measures, or of groups of them: stream, branches, attention, ranks, pairs, bound, all.
        tokens: count `patches` (in texts: words) alone, or `all`, with class token and registers.
        mask_ratio: share of patches to leave out at random, as in masked pretraining; 0 for whole images.
        samples: stop after so many samples (of this process).
        blocks: path of the list of blocks, where it cannot be found.
        prefix: number of tokens before the patches, where they cannot be found.
        precision: run the model in fp32 (`32`) or under `bf16` autocast; `auto` is bf16 on a GPU that has it. Measures
            are always in fp32.
        seed: of masks.
        label: a name for tables and legends, by default the model's class.
        progress: show a progress bar.

    Raises:
        InputError: where the model has no list of blocks, cannot be masked, or does not fit the data.
    """
    kind, model, chosen = type(model).__name__, encoder_of(model), choose(measures)
    stack, device = find_stack(model, blocks), next(model.parameters()).device
    feeder, recorder = Feeder(model, tokens, mask_ratio, seed, prefix), Recorder(chosen, stack)
    branches, attention = (not names.isdisjoint(chosen) for names in (NEEDS_BRANCHES, NEEDS_MAPS))
    fingerprints: list[int] = []
    skipped = 0
    with evaluating(model), capture(model, recorder, stack.path, branches, attention):
        for batch, marks in _take(loader, samples, progress):
            fingerprints += marks
            skipped += len(batch.skipped)
            batch = batch.map(lambda tensor: tensor.to(device))
            recorder.layout, recorder.groups = feeder.layout(batch), torch.tensor(marks, device=device) % GROUPS
            with autocast(precision, device):
                feeder.run(batch, marks)
            recorder.end_batch()
    values, sums = _gather(fingerprints, recorder)
    stream = [number for number, key in enumerate(recorder.keys) if key.position == "stream"]
    if stream and not np.isfinite(values[:, stream]).any():
        raise InputError(f"nothing can be measured of {label or kind}: no sample has tokens that count, or all are NaN")
    notes = _undefined(values, recorder.keys)
    if skipped:
        notes.append(f"{skipped} files could not be read")
    settings: dict[str, Any] = {"model": kind, "blocks": stack.path}
    settings |= {"prefix_tokens": 0 if reads_text(model) else feeder.prefix.length, "measures": list(chosen)}
    settings |= {"tokens": tokens, "mask_ratio": mask_ratio, "precision": precision}
    settings |= {"device": device.type, "seed": seed}
    parts = {Key(at, name, layer): part for at, layer, name, part in pooled(sums) if name in chosen}
    keys, depth = tuple(recorder.keys), len(stack.blocks)
    return Profile(label or kind, depth, keys, values, settings, versions(), tuple(notes), pooled=parts)


def _take(loader: Iterable[Any], limit: int | None, progress: bool) -> Iterator[tuple[Batch, list[int]]]:
    """Batches and fingerprints up to a number of samples, cut within a batch, so that its size does not matter."""
    taken = 0
    hidden: dict[str, Any] = {} if progress else {"disable": True}  # without the option tqdm obeys TQDM_DISABLE
    with tqdm(total=limit, unit=" samples", dynamic_ncols=True, **hidden) as bar:
        for batch in map(read_batch, loader):
            if limit is not None:
                batch = batch.map(itemgetter(slice(limit - taken)))
            marks = batch.fingerprints()
            if marks:
                yield batch, marks
            taken += len(marks)
            bar.update(len(marks))
            if taken == limit:
                break
    if not taken:
        raise InputError("there are no samples to profile")


def _gather(fingerprints: list[int], recorder: Recorder) -> tuple[NDArray[np.float32], dict[Place, Sums]]:
    """The numbers of all samples of all processes, ordered by fingerprint, so not by reading; and the common sums."""
    parts = of_all_processes((fingerprints, np.concatenate(recorder.rows), recorder.split.state()))
    marks, values = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return values[np.argsort(marks, kind="stable")], united([part[2] for part in parts])


def _undefined(values: NDArray[np.float32], keys: Sequence[Key]) -> list[str]:
    """A note for each set of curves that are not finite at the same layers, for the same number of samples."""
    counts = (~np.isfinite(values)).sum(0).tolist()
    layers: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for key, count in zip(keys, counts, strict=True):
        if count:
            layers[key.position, key.measure].append((key.layer, count))
    names: dict[tuple[str, tuple[tuple[int, int], ...]], list[str]] = defaultdict(list)
    for (position, measure), places in layers.items():
        names[position, tuple(places)].append(measure)
    return [
        f"not finite for up to {max(count for _, count in places)} of {len(values)} samples, which are left out: "
        f"{', '.join(measures)} at {position}, layers {places[0][0]} to {places[-1][0]}"
        for (position, places), measures in names.items()
    ]


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            result[package] = version(package)
    return result
