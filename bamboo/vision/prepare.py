"""`bamboo prepare`: any SOURCE of images as tar shards of smaller JPEGs, which are read and decoded faster."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bamboo.errors import InputError
from bamboo.files import atomic_write, read_json, write_json, write_text
from bamboo.vision.images import Encoded, Source, Unreadable
from bamboo.vision.sources import open_source
from bamboo.vision.splits import Splits
from bamboo.vision.tar_shards import index
from bamboo.workers import Report, run_tasks

SETTINGS = "prepare.json"
UNREADABLE = "unreadable.txt"
KEPT = ("JPEG", "PNG", "WEBP")
"""Formats that stay as they are where an image is small enough."""


@dataclass(frozen=True)
class Shard:
    """A tar file to write: images of `source`, of which the first is number `start` of its split."""

    path: Path
    source: Source
    start: int
    short_side: int
    quality: int

    @property
    def name(self) -> str:
        """What the progress bar shows."""
        return self.path.stem


def prepare(
    source: str,
    *,
    out: Path,
    short_side: int = 256,
    quality: int = 90,
    shard_size: int = 1000,
    workers: int | None = None,
) -> None:
    """Re-encode the images of a source into tar files, whose shorter side is at most so many pixels.

    An image that is no larger keeps its bytes; any other becomes an RGB JPEG. A command that was stopped goes on with
    the tar files that are missing. At the end images are counted, and those that cannot be read are listed.

    Args:
        source: a folder of images, tar or Parquet files, `hf:NAME` or `torchvision:NAME,root=FOLDER`.
        out: folder for the tar files, `train-00000.tar` and so on, and for `classes.txt`; it is a source itself then.
        short_side: of an image, in pixels, at most.
        quality: of the JPEGs, 1 to 95.
        shard_size: images in a tar file.
        workers: processes; by default one per core.
    """
    if short_side < 1 or not 1 <= quality <= 95 or shard_size < 1 or (workers is not None and workers < 1):
        raise InputError("short_side, shard_size and workers must be positive, quality must lie between 1 and 95")
    splits = open_source(source, in_chans=3)
    settings = {"source": source, "short_side": short_side, "quality": quality, "shard_size": shard_size}
    _begin(out, {**settings, "images": [0 if each is None else len(each) for each in splits]})
    if classes := splits.train.classes:
        write_text(out / "classes.txt", "\n".join(classes) + "\n")
    shards = [*_shards(splits, out, short_side, quality, shard_size)]
    _write_shards([shard for shard in shards if not shard.path.is_file()], workers or os.cpu_count() or 1)
    _count(splits, shards, out)


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Say what is prepared, or see that it is the same as before."""
    path = out / SETTINGS
    if path.is_file():
        if different := [key for key, value in read_json(path).items() if settings.get(key) != value]:
            raise InputError(f"{out} was begun with another {' and '.join(different)}: give another --out")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty, and nothing was prepared in it: give another --out")
    else:
        write_json(path, settings)
    for unfinished in out.glob(".*.tar.*"):  # of a process that was killed
        unfinished.unlink()


def _shards(splits: Splits, out: Path, short_side: int, quality: int, size: int) -> Iterator[Shard]:
    for split, source in splits._asdict().items():
        for number, start in enumerate(range(0, 0 if source is None else len(source), size)):
            images = source.subset(np.arange(start, min(start + size, len(source))))
            yield Shard(out / f"{split}-{number:05}.tar", images, start, short_side, quality)


def _write_shards(shards: list[Shard], workers: int) -> None:
    from tqdm import tqdm

    def ended(shard: Shard, failure: str | None) -> None:
        if failure:
            raise InputError(f"{shard.path} could not be written: {failure.strip().splitlines()[-1]}")

    total = sum(len(shard.source) for shard in shards)
    with tqdm(total=total, unit=" images", disable=None) as bar:
        if min(workers, len(shards)) > 1:
            run_tasks(write_shard, shards, [{"OMP_NUM_THREADS": "1"}] * min(workers, len(shards)), ended, bar)
        else:
            for shard in shards:
                write_shard(shard, bar.update)


def write_shard(shard: Shard, report: Report) -> None:
    """Write a tar file, whole or not at all; images that cannot be read are left out of it."""
    with atomic_write(shard.path) as temporary, tarfile.open(temporary, "w") as tar:
        for place in range(len(shard.source)):
            try:
                ending, content = _encode(shard.source, place, shard.short_side, shard.quality)
            except Unreadable:
                continue
            key = f"{shard.start + place:09}"
            _add(tar, f"{key}.{ending}", content)
            if (label := int(shard.source.labels[place])) >= 0:
                _add(tar, f"{key}.cls", str(label).encode())
        report(len(shard.source))


def _encode(source: Source, index: int, short_side: int, quality: int) -> tuple[str, bytes]:
    """The ending and the content of an image whose shorter side is at most `short_side` pixels."""
    if isinstance(source, Encoded):
        encoded = source.encoded(index)
        if ending := _kept_ending(encoded, short_side):
            source.read(index)  # whose bytes are kept must be readable too
            return ending, encoded.tobytes()
    image = Image.fromarray(source.read(index).permute(1, 2, 0).numpy())
    scale = short_side / min(image.size)
    if scale < 1:
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "jpg", buffer.getvalue()


def _kept_ending(encoded: NDArray[np.uint8], short_side: int) -> str:
    """How an image that is small enough ends, "" for any other."""
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            small = min(image.size) <= short_side and image.format in KEPT
            return {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower()) if small else ""
    except Exception:  # of every kind, by Pillow's decoders: reading it says what is wrong
        return ""


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _count(splits: Splits, shards: list[Shard], out: Path) -> None:
    """Print how many images there are, and list what is missing of them: what could not be read."""
    missing: list[str] = []
    for split, source in splits._asdict().items():
        if source is None:
            continue
        files = [shard.path for shard in shards if shard.path.name.startswith(split)]
        written = {int(name.partition(b".")[0]) for name in index(files).names}
        missing += [source.name(number) for number in range(len(source)) if number not in written]
        size = sum(path.stat().st_size for path in files) / 1e6
        print(f"{split}: {len(written)} of {len(source)} images in {len(files)} tar files, {size:.1f} MB")
    write_text(out / UNREADABLE, "".join(f"{name}\n" for name in missing))
    if missing:
        print(f"{len(missing)} images cannot be read and were left out: {out / UNREADABLE}")
