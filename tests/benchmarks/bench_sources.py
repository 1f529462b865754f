"""Images per second from tar and Parquet files against the folder of the same JPEGs, and how long a run takes to start.

All sides take turns on one thread, and seconds are those of the processor. `prepared` reads tar files that
`bamboo prepare` made of the photographs, with a shorter side of 256 pixels. The start is that of a data module on tar
files with 1.28 million images, as many as ImageNet has, of which the index is made up: until the first batch of 32.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch

from bamboo.vision.data import ImageFolder
from bamboo.vision.images import Encoded, Source
from bamboo.vision.prepare import Shard, write_shard
from bamboo.vision.sources import open_source
from bamboo.vision.tar_shards import Entries, cache_path, index
from bamboo.vision.views import TrainImages, collate
from tests.benchmarks.bench_data import make_photos, rate

COUNT, SHARDS, IMAGES = 64, 1282, 1_281_167


def write_sources(root: Path) -> dict[str, Source]:
    """The same photographs in every form, and prepared ones."""
    (root / "folder").mkdir()
    make_photos(root / "folder", COUNT)
    folder = open_source(str(root / "folder"), in_chans=3).train
    assert isinstance(folder, Encoded)
    for name, side in {"tar": 10_000, "prepared": 256}.items():
        write_shard(Shard(root / name / "train-00000.tar", folder, 0, side, 90), lambda count: None)
    rows = {"image": [{"bytes": folder.encoded(i).tobytes(), "path": None} for i in range(COUNT)]}
    (root / "parquet").mkdir()
    images = datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image()))
    images.to_parquet(root / "parquet" / "train.parquet")
    others = {name: open_source(str(root / name), in_chans=3).train for name in ("tar", "parquet", "prepared")}
    return {"folder": folder, **others}


def start_seconds(root: Path) -> float:
    """Seconds from the construction of a data module to its first batch, with an index that was read before."""
    root.mkdir()
    make_photos(root, 1)
    photo = open_source(str(root), in_chans=3).train
    shard = root / "shards" / "train-00000.tar"
    write_shard(Shard(shard, photo, 0, 10_000, 90), lambda count: None)
    files = [shard, *(shard.with_name(f"train-{number:05}.tar") for number in range(1, SHARDS))]
    for path in files[1:]:
        os.link(shard, path)
    one = index([shard])
    numbers = np.arange(IMAGES)
    entries = Entries(
        names=np.char.add(np.char.mod("%09d", numbers), ".jpg").astype(np.bytes_),
        shards=(numbers % SHARDS).astype(np.int32),
        offsets=np.full(IMAGES, one.offsets[0]),
        sizes=np.full(IMAGES, one.sizes[0]),
        labels=numbers % 1000,
        classes=np.array([], np.str_),
    )
    path = cache_path(files)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **entries._asdict())
    start = time.perf_counter()
    data = ImageFolder(str(shard.parent), batch_size=32)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader()))["image"]) == 32
    return time.perf_counter() - start


@contextmanager
def own_caches(folder: Path) -> Iterator[None]:
    """Caches of indices and of data sets in a folder that goes away."""
    before, kept = datasets.config.HF_DATASETS_CACHE, os.environ.get("XDG_CACHE_HOME")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        os.environ.pop("XDG_CACHE_HOME") if kept is None else os.environ.update(XDG_CACHE_HOME=kept)


def bench_sources(seconds: float = 20.0) -> dict[str, float]:
    """Median rates, and median ratios to the folder within a round, over as many rounds as fit in `seconds`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, own_caches(Path(name) / "cache"):
        views = {kind: TrainImages(source, (224, 224)) for kind, source in write_sources(Path(name)).items()}
        rounds, end = [], time.perf_counter() + seconds
        while len(rounds) < 3 or time.perf_counter() < end:
            sides = {k: lambda v=v: collate([v[i] for i in range(COUNT)])["image"] for k, v in views.items()}
            rounds.append({kind: rate(batch) for kind, batch in sides.items()})
        start = start_seconds(Path(name) / "start")
    torch.set_num_threads(threads)
    rounds = rounds[1:]  # the first one warms up
    result = {f"{kind}_images_per_s": statistics.median(r[kind] for r in rounds) for kind in views}
    for kind in ("tar", "parquet", "prepared"):
        result[f"{kind}_over_folder"] = statistics.median(r[kind] / r["folder"] for r in rounds)
    return {**result, "start_seconds": start, "rounds": len(rounds)}


if __name__ == "__main__":
    for key, value in bench_sources().items():
        print(f"{key:28} {value:10.3f}")
