"""Measure a model over a data set in one pass, streaming: states are measured as they appear and forgotten."""

import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from tqdm.auto import tqdm

from bamboo.errors import InputError

from .architectures import find_stack
from .captures import capture
from .definitions import DEFAULT, choose
from .feeding import Batch, Feeder, Tokens, encoder_of, evaluating, precision_context, read_batch, reads_text
from .profiles import Profile
from .recorder import BRANCHES, MAPS, Key, Recorder
from .similarity_split import GROUPS, Place, Sums, pooled, united

PACKAGES = ("bamboo-mae", "torch", "torchvision", "timm", "transformers", "numpy")


def profile(
    model: nn.Module,
    loader: Iterable[Any],
    measures: Sequence[str] = DEFAULT,
    tokens: Tokens = "patches",
    mask_ratio: float = 0.0,
    samples: int | None = None,
    blocks: str | None = None,
    prefix: int | None = None,
    precision: Literal["32", "bf16"] = "32",
    seed: int = 0,
    label: str | None = None,
    progress: bool = False,
) -> Profile:
    """How alike a model's tokens are after each block, over the samples of a loader.

    The model runs once over the data, without its head, in evaluation mode and without gradients, on the device where
    it is. States are never kept: memory grows with the number of samples by their numbers alone, some kilobytes each.
    The result does not depend on batch size, on the order of samples or on the number of workers, but for rounding.
    Where `torch.distributed` is initialised, each process profiles its own loader and all get the result of all; give
    each a share without repetition.

    Args:
        model: a timm, Hugging Face or torchvision model, a masked autoencoder, or any module with a list of blocks.
        loader: batches of images (B, C, H, W), bytes or standardised floats, alone, first in a tuple, or in a
            dictionary under `image` or `pixel_values`; or dictionaries with `input_ids`, `attention_mask` and
            `special_tokens_mask`.
        measures: names of measures, or of groups of them: stream, branches, ranks, pairs, attention, all.
        tokens: count `patches` (in texts: words) alone, or `all`, with class token and registers.
        mask_ratio: share of patches to leave out at random, as in masked pretraining; 0 for whole images.
        samples: stop after so many samples (of this process).
        blocks: path of the list of blocks, where it cannot be found.
        prefix: number of tokens before the patches, where they cannot be found.
        precision: run the model in fp32 or under bf16 autocast; measures are always in fp32.
        seed: of masks and of the bootstrap.
        label: a name for tables and legends, by default the model's class.
        progress: show a progress bar.

    Raises:
        InputError: where the model has no list of blocks, cannot be masked, or does not fit the data.
    """
    kind, model, chosen = type(model).__name__, encoder_of(model), choose(measures)
    stack, device = find_stack(model, blocks), next(model.parameters()).device
    feeder, recorder = Feeder(model, tokens, mask_ratio, seed, prefix), Recorder(chosen, stack)
    branches, attention = (any(name in chosen for name in names) for names in (BRANCHES, MAPS))
    fingerprints: list[int] = []
    skipped: list[str] = []
    with evaluating(model), capture(model, recorder, stack.path, branches, attention):
        for batch in _take(loader, samples, progress):
            marks = batch.fingerprints()
            fingerprints += marks
            skipped += batch.skipped
            placed = batch.to(device)
            recorder.layout, recorder.groups = feeder.layout(placed), torch.tensor(marks, device=device) % GROUPS
            with precision_context(precision, device):
                feeder.run(placed, marks)
            recorder.end_batch()
    values, keys, sums = _gather(fingerprints, recorder)
    parts = {Key(at, name, layer): part for at, layer, name, part in pooled(sums) if name in chosen}
    settings = {
        "model": kind,
        "blocks": stack.path,
        "prefix_tokens": 0 if reads_text(model) else feeder.prefix.length,
        "measures": list(chosen),
        "tokens": tokens,
        "mask_ratio": mask_ratio,
        "precision": precision,
        "device": device.type,
        "seed": seed,
    }
    notes = [*_undefined(values, keys), *([f"{len(skipped)} files could not be read"] if skipped else [])]
    return Profile(label or kind, len(stack.blocks), keys, values, settings, _versions(), tuple(notes), pooled=parts)


def _take(loader: Iterable[Any], limit: int | None, progress: bool) -> Iterator[Batch]:
    """Batches up to a number of samples, cut within a batch, so that the batch size does not matter."""
    taken = 0
    hidden: dict[str, Any] = {} if progress else {"disable": True}  # told nothing, tqdm obeys TQDM_DISABLE
    with tqdm(total=limit, unit=" samples", dynamic_ncols=True, **hidden) as bar:
        for given in loader:
            batch = read_batch(given)
            if limit is not None:
                batch = batch.first(limit - taken)
            taken += len(batch)
            if len(batch):
                yield batch
                bar.update(len(batch))
            if taken == limit:
                break
    if not taken:
        raise InputError("there are no samples to profile")


def _gather(
    fingerprints: list[int], recorder: Recorder
) -> tuple[NDArray[np.float32], tuple[Key, ...], dict[Place, Sums]]:
    """The numbers of all samples of all processes, ordered by fingerprint, so not by reading; and the common sums."""
    values, marks, keys = np.concatenate(recorder.rows), np.asarray(fingerprints), tuple(recorder.keys)
    sums = recorder.split.state()
    if distributed.is_available() and distributed.is_initialized():
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, (marks, values, sums))
        marks, values = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        sums = united([part[2] for part in parts])
    return values[np.argsort(marks, kind="stable")], keys, sums


def _undefined(values: NDArray[np.float32], keys: Sequence[Key]) -> Iterator[str]:
    """A line for each set of curves that are not finite for the same number of samples."""
    bad = (~np.isfinite(values)).sum(0)
    layers: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for key, count in zip(keys, bad.tolist(), strict=True):
        if count:
            layers[key.position, key.measure].append((key.layer, count))
    same: dict[tuple[str, tuple[tuple[int, int], ...]], list[str]] = defaultdict(list)
    for (position, measure), where in layers.items():
        same[position, tuple(where)].append(measure)
    for (position, places), names in same.items():
        at, most = [layer for layer, _ in places], max(count for _, count in places)
        yield (
            f"not finite for up to {most} of {len(values)} samples, which are left out: {', '.join(names)} "
            f"at {position}, layers {at[0]} to {at[-1]}"
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
