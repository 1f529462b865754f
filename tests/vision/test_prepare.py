"""`bamboo prepare`: what becomes of images, in parallel, after a stop, and where some cannot be read."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.cli import main
from bamboo.vision.images import Encoded
from bamboo.vision.sources import open_source
from tests.conftest import write_images
from tests.vision.sources import CLASSES, COUNTS, as_folder, examples


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prepare(source: object, out: Path, *args: str) -> int:
    return main(["prepare", str(source), "--out", str(out), "--workers", "1", *args])


def test_small_images_keep_their_bytes_and_the_split_and_classes_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_folder(tmp_path / "folder")
    assert prepare(tmp_path / "folder", tmp_path / "out", "--shard-size", "3", "--workers", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 10 of 10 images in 4 tar files, ")
    assert lines[1].startswith("val: 4 of 4 images in 2 tar files, ")
    assert len(lines) == 2
    for split, source in zip(COUNTS, open_source(str(tmp_path / "out"), in_chans=3), strict=True):
        assert isinstance(source, Encoded)
        contents = [source.encoded(i).tobytes() for i in range(len(source))]
        assert list(zip(contents, source.labels.tolist(), strict=True)) == examples(split)
        assert source.classes == CLASSES


def test_larger_images_get_a_shorter_side_of_so_many_pixels(tmp_path: Path) -> None:
    write_images(tmp_path / "folder", 3, size=(60, 90))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "folder" / "x.png")
    Image.fromarray(pixels[:20, :, 0]).save(tmp_path / "folder" / "y.png")
    Image.fromarray(pixels[:20, :, 0]).save(tmp_path / "folder" / "z.bmp")
    assert prepare(tmp_path / "folder", tmp_path / "out", "--short-side", "24", "--quality", "95") == 0
    train, val = open_source(str(tmp_path / "out"), in_chans=3)
    assert val is None
    assert train.labels.tolist() == [-1] * 6
    assert [tuple(train.read(i).shape[1:]) for i in range(6)] == [(24, 36)] * 3 + [(30, 24), (20, 40), (20, 40)]
    endings = ["jpg", "jpg", "jpg", "jpg", "png", "jpg"]
    assert [os.fsdecode(name) for name in train.names] == [f"{i:09}.{ending}" for i, ending in enumerate(endings)]
    with Image.open(tmp_path / "folder" / "000.jpg") as image:
        buffer = io.BytesIO()
        image.resize((36, 24), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    difference = train.read(0).int() - torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    assert difference.abs().max() <= 3  # two decoders


def test_what_cannot_be_read_is_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_folder(tmp_path / "folder")
    broken = [tmp_path / "folder" / "train" / "ant" / f"{number:03}.jpg" for number in (1, 3)]
    broken[0].write_bytes(broken[0].read_bytes()[:200])
    broken[1].write_bytes(b"")
    assert prepare(tmp_path / "folder", tmp_path / "out") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"2 images cannot be read and were left out: {tmp_path / 'out' / 'unreadable.txt'}"
    assert (tmp_path / "out" / "unreadable.txt").read_text().splitlines() == list(map(str, broken))
    assert len(open_source(str(tmp_path / "out"), in_chans=3).train) == 8


def test_a_command_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    write_images(tmp_path / "folder", 300, size=(300, 400))
    args = ["prepare", str(tmp_path / "folder"), "--short-side", "64", "--shard-size", "30", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "bamboo", *args, "--out", str(tmp_path / "out")])
    while not list((tmp_path / "out").glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert 0 < len(before) < 10
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    names = [f"train-{number:05}.tar" for number in range(10)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"prepare.json", "unreadable.txt", *names}
    for name in names:
        written = tmp_path / "out" / name
        assert written.read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert name not in before or written.stat().st_mtime_ns == before[name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--short-side", "0"], "short_side, shard_size and workers must be positive"),
        (["--quality", "99"], "quality must lie between 1 and 95"),
        (["--short-side", "wide"], "short_side"),
        (["--short-side", "20"], "was begun with another short_side: give another --out"),
        (["--shard-size", "20"], "was begun with another shard_size: give another --out"),
    ],
)
def test_bad_arguments_get_one_line_and_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    as_folder(tmp_path / "folder")
    assert prepare(tmp_path / "folder", tmp_path / "out") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert prepare(tmp_path / "folder", tmp_path / "out", *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_folder(tmp_path / "folder")
    assert prepare(tmp_path / "folder", tmp_path / "folder") == 2
    assert "is not empty, and nothing was prepared in it" in capsys.readouterr().err
    (tmp_path / "folder" / "val" / "bee" / "002.jpg").unlink()
    assert prepare(tmp_path / "folder", tmp_path / "out") == 0
    (tmp_path / "folder" / "val" / "bee" / "003.jpg").unlink()
    (tmp_path / "folder" / "val" / "ant" / "000.jpg").unlink()
    assert prepare(tmp_path / "folder", tmp_path / "out") == 2
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["images"] == [10, 3]
