"""Decoding on the device gives the batches of the workers, shown on a CPU, where both have the same decoder."""

from pathlib import Path

import pytest
import torch

from bamboo.errors import InputError
from bamboo.vision.data import Digits, ImageData, ImageFolder
from tests.runs import same
from tests.vision.sources import as_folder
from tests.vision.test_data import Recorder, photo, trainer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """JPEGs, of which one is cut short and one is none, and a PNG."""
    as_folder(tmp_path)
    folder = tmp_path / "train" / "bee"
    (folder / "006.jpg").write_bytes((folder / "006.jpg").read_bytes()[:300])
    (folder / "007.jpg").write_bytes(b"no image")
    photo(5).save(folder / "x.png")
    return tmp_path


class Batches(Recorder):
    """Keeps the batches of a run as they reach the model."""

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        self.seen.append(batch)


def batches(tmp_path: Path, data: ImageData) -> list[object]:
    model = Batches()
    trainer(tmp_path, enable_checkpointing=False, max_epochs=2).fit(model, datamodule=data)
    return model.seen


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_the_workers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_chans: int, workers: int
) -> None:
    options = {"image_size": 16, "in_chans": in_chans, "batch_size": 4, "repeat": 2, "num_workers": workers}
    expected = batches(tmp_path, ImageFolder(str(root), **options))
    assert any(batch["skipped"] for batch in expected)
    monkeypatch.setattr(ImageData, "_on_gpu", lambda self: True)
    decoded = ImageFolder(str(root), **options, decode_on_gpu=True)
    assert all(map(same, batches(tmp_path, decoded), expected))
    assert decoded._decoding is not None
    monkeypatch.undo()
    here = ImageFolder(str(root), **options, decode_on_gpu=True)
    assert all(map(same, batches(tmp_path, here), expected))
    assert here._decoding is None  # there is no GPU


@pytest.mark.parametrize("data", ["digits", "augment", "alpha"])
def test_what_cannot_be_decoded_there_gets_one_line(root: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setattr(ImageData, "_on_gpu", lambda self: True)
    options = {"augment": {"augment": "rand-m9-mstd0.5-inc1"}, "alpha": {"in_chans": 4}}.get(data, {})
    kind = Digits if data == "digits" else lambda **more: ImageFolder(str(root), **more)
    with pytest.raises(InputError, match="decode_on_gpu"):
        kind(decode_on_gpu=True, batch_size=4, **options).train_dataloader()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_pixels_differ_by_rounding_alone(root: Path, tmp_path: Path) -> None:
    options = {"image_size": 16, "batch_size": 4}
    expected = batches(tmp_path, ImageFolder(str(root), **options))
    for left, right in zip(
        batches(tmp_path, ImageFolder(str(root), **options, decode_on_gpu=True)), expected, strict=True
    ):
        assert (left["image"].cpu().int() - right["image"].cpu().int()).abs().max() <= 8
        assert torch.equal(left["label"].cpu(), right["label"].cpu())
