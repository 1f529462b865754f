import os

# Before torch starts its threads: tests run side by side with other work, and bit-for-bit comparisons need one number.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import logging
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import ROOT

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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this working tree."""
    out = tmp_path_factory.mktemp("wheel")
    # From a copy of what git tracks or would track, so that nothing built earlier slips in.
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\n"):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "notebooks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, source], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """An environment of the wheel and of this one's dependencies, without its editable install of the project."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (Path(sysconfig.get_path("purelib", vars={"base": str(folder)})) / "dependencies.pth").write_text(
        "\n".join(dependencies)
    )
    return folder


@pytest.fixture
def graphs():
    """How many graphs were compiled so far, and how many calls broke one."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield lambda: (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
    torch._dynamo.reset()
