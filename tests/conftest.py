import os

# Before torch starts its threads: tests run side by side with other work, and bit-for-bit comparisons need one number.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging

import numpy as np
import pytest
from PIL import Image

logging.raiseExceptions = False  # Lightning's handlers keep the standard error of the test that came first


def write_images(folder, count, size=(40, 48), seed=0, ending="jpg"):
    """JPEGs of smooth random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        small = random.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index:03}.{ending}")
    return folder


@pytest.fixture(scope="session")
def image_root(tmp_path_factory):
    """A folder in ImageNet's layout: two classes, 32 training and 13 validation images."""
    root = tmp_path_factory.mktemp("images")
    for seed, (split, name, count) in enumerate(
        [("train", "ant", 16), ("train", "bee", 16), ("val", "ant", 7), ("val", "bee", 6)]
    ):
        write_images(root / split / name, count, seed=seed)
    return root


@pytest.fixture
def graphs():
    """How many graphs were compiled so far, and how many calls broke one."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
    torch._dynamo.reset()
