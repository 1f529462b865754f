import pickle
import shutil
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision import datasets
from torchvision.transforms import InterpolationMode, v2

from bamboo.errors import InputError
from bamboo.sampling import NOTHING, EvalSampler, TrainSampler
from bamboo.seeds import derive_seed
from bamboo.vision import folders, images
from bamboo.vision.data import Digits, ImageData, ImageFolder, TorchvisionData
from bamboo.vision.folders import folder_splits
from bamboo.vision.images import Arrays, Unreadable, read_bytes, read_image
from bamboo.vision.splits import Sources
from bamboo.vision.views import EvalImages, TrainImages, collate, evaluation_view


def photo(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Smooth random colours, which JPEG keeps nearly as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def fill(folder: Path, count: int, first: int = 0, ending: str = "jpg") -> Path:
    folder.mkdir(parents=True)
    for seed in range(first, first + count):
        photo(seed).save(folder / f"{seed:03}.{ending}")
    return folder


class Numbered(ImageData):
    """Images that say which they are: every pixel of image i is i."""

    def __init__(self, count: int = 24, **kwargs: Any):
        super().__init__(**{"image_size": 4, "in_chans": 1, "batch_size": 4, **kwargs})
        self.count = count

    def read_sources(self) -> Sources:
        pixels = torch.arange(self.count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        source = Arrays(pixels, np.arange(self.count, dtype=np.int64))
        return Sources(source, source)


class Recorder(LightningModule):
    """Keeps the labels of every batch it is shown."""

    def __init__(self, asks_for_steps: bool = False) -> None:
        super().__init__()
        self.weight, self.seen, self.asks_for_steps = nn.Parameter(torch.zeros(())), [], asks_for_steps

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        self.seen.append(batch["label"].tolist())
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks_for_steps:
            _ = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, limit_val_batches=0, **quiet, **kwargs)


def labels(loader: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["label"].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain(*batches))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_read_what_one_process_reads(world: int) -> None:
    whole = TrainSampler(range(50), 6, seed=3)
    parts = [TrainSampler(range(50), 6 // world, 3, world, rank) for rank in range(world)]
    for epoch in range(2):
        for sampler in (whole, *parts):
            sampler.set_epoch(epoch)
        steps = np.array([list(sampler) for sampler in parts]).reshape(world, 8, 6 // world, 2)
        together = steps.transpose(1, 2, 0, 3).reshape(-1, 2)
        assert together.tolist() == [list(pair) for pair in whole]
        assert len(set(whole)) == 48
        assert {e for _, e in whole} == {epoch}


def test_epochs_and_seeds_shuffle_differently() -> None:
    one, other = TrainSampler(range(50), 5, seed=0), TrainSampler(range(50), 5, seed=1)
    first = [index for index, _ in one]
    assert first == [index for index, _ in one]
    assert first != [index for index, _ in other]
    one.set_epoch(1)
    assert first != [index for index, _ in one]


def test_an_epoch_is_dealt_out_without_a_list_of_its_numbers() -> None:
    sampler = TrainSampler(range(200_000), 10)
    tracemalloc.start()
    assert len({index for index, _ in zip(sampler, range(10), strict=False)}) == 10
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # bytes; torch's are not among them


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 3), (2, 2), (2, 1), (3, 5), (16, 4)])
def test_evaluation_counts_every_sample_once_in_equally_many_batches(world: int, batch: int) -> None:
    shares = [list(EvalSampler(range(13), batch, world, rank)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    kept = [[index for index in share if index != NOTHING] for share in shares]
    assert sorted(chain(*kept)) == list(range(13))
    if world == 2:
        assert [len(share) for share in kept] == [7, 6]


def test_evaluation_batches_are_never_padded() -> None:
    data = Numbered(13, batch_size=3)
    loader = data.val_dataloader()
    assert len(loader) == 5
    assert flat(labels(loader)) == list(range(13))
    assert all(len(batch["image"]) == len(batch["label"]) > 0 for batch in loader)


def views(folder: Path, **kwargs: Any) -> Iterator[dict[str, Any]]:
    data = ImageFolder(str(folder), image_size=16, batch_size=4, seed=5, **kwargs)
    for _ in range(2):
        loader = data.train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            yield from loader


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return torch.equal(left["image"], right["image"]) and torch.equal(left["label"], right["label"])


def test_samples_do_not_depend_on_workers_nor_on_the_global_stream(tmp_path: Path) -> None:
    fill(tmp_path / "photos", 14)
    torch.manual_seed(1)
    alone = list(views(tmp_path / "photos"))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    workers = list(views(tmp_path / "photos", num_workers=2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == 12
    assert all(map(same, alone, workers))
    assert all(map(same, alone[:6], alone[6:]))
    assert not same(alone[0], alone[3])
    assert alone[0]["image"].dtype == torch.uint8
    assert alone[0]["image"].shape == (4, 3, 16, 16)


def test_repeat_gives_several_views_of_an_image_that_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "a", 6), fill(tmp_path / "b", 6, first=6)
    data = ImageFolder(str(tmp_path), image_size=16, batch_size=4, repeat=2)
    data.setup()
    read: list[str] = []
    monkeypatch.setattr(images, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    batches = list(data.train_dataloader())
    assert len(batches) == 5  # of 11 images, two per step
    assert len(read) == len(set(read)) == 10
    for batch in batches:
        assert batch["image"].shape == (4, 3, 16, 16)
        assert batch["label"][0::2].tolist() == batch["label"][1::2].tolist()
        assert not torch.equal(batch["image"][0], batch["image"][1])
    single = TrainImages(data.sources.train, (16, 16))
    double = TrainImages(data.sources.train, (16, 16), repeat=2)
    assert torch.equal(single[3, 7].images[0], double[3, 7].images[0])


def test_views_are_torchvisions_under_their_own_seed(tmp_path: Path) -> None:
    source = folder_splits(fill(tmp_path / "photos", 4), in_chans=3).sources(0.05, seed=0).train
    crop = v2.RandomResizedCrop((12, 20), scale=(0.3, 1), interpolation=InterpolationMode.BICUBIC)
    torch.manual_seed(derive_seed(9, "view", 2, 1, 0))
    expected = v2.RandomHorizontalFlip(0.5)(crop(source.read(1)))
    assert torch.equal(TrainImages(source, (12, 20), 0.3, 0.5, seed=9)[1, 2].images[0], expected)


@pytest.mark.parametrize(
    ("workers", "asks_for_steps", "limits"),
    [
        (0, False, {"max_epochs": 3}),
        (0, False, {"max_steps": 18}),
        (0, True, {"max_epochs": 3}),
        (0, True, {"max_steps": 18}),
        (2, False, {"max_epochs": 3}),
    ],
)
def test_a_run_resumes_at_the_right_batch(
    tmp_path: Path, workers: int, asks_for_steps: bool, limits: dict[str, int]
) -> None:
    whole = Recorder(asks_for_steps)
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callbacks=[every], **limits).fit(whole, datamodule=Numbered(num_workers=workers))
    assert len(whole.seen) == 18
    for step in (4, 6, 8) if workers else (1, 4, 6, 8, 11, 12, 17):
        rest = Recorder(asks_for_steps)
        resumed = trainer(tmp_path, enable_checkpointing=False, **limits)
        resumed.fit(rest, datamodule=Numbered(num_workers=workers), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert rest.seen == whole.seen[step:], f"resumed after step {step}"


def test_a_restart_decodes_nothing_that_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Numbered()
    loader = data.train_dataloader()
    whole = labels(loader)
    loader.load_state_dict({"epoch": 0, "batches": 4})
    read: list[int] = []
    monkeypatch.setattr(data.sources.train, "read", lambda i: read.append(i) or torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert labels(loader) == whole[4:]
    assert read == flat(whole[4:])
    assert labels(loader) == whole
    assert loader.state_dict() == {"epoch": 0, "batches": 6}


def test_a_state_of_another_epoch_skips_nothing() -> None:
    loader = Numbered().train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 4})
    loader.sampler.set_epoch(1)
    assert len(labels(loader)) == 6


def test_overfitting_on_a_few_batches_works(tmp_path: Path) -> None:
    module = Recorder()
    trainer(tmp_path, overfit_batches=2, max_epochs=2, enable_checkpointing=False).fit(module, datamodule=Numbered())
    assert module.seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_a_corrupt_image_is_replaced_in_training_and_left_out_in_evaluation(tmp_path: Path) -> None:
    good = fill(tmp_path / "good", 8)
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    broken = bad / "003.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    sources = [folder_splits(folder, 3).sources(0.13, seed=0).train for folder in (good, bad)]
    names = [Path(sources[1].name(i)).name for i in range(7)]
    assert "003.jpg" in names[:-1]
    place = names.index("003.jpg")
    whole, holed = (TrainImages(source, (16, 16), seed=1) for source in sources)
    for index in range(7):
        if index != place:
            assert torch.equal(whole[index, 0].images, holed[index, 0].images)
            assert holed[index, 0].skipped == []
    torch.manual_seed(derive_seed(1, "view", 0, place, 0))
    assert torch.equal(holed[place, 0].images[0], holed.transform(sources[1].read(place + 1)))
    assert holed[place, 0].skipped == [str(broken)]
    batch = collate([EvalImages(sources[1], (16, 16))[index] for index in range(7)])
    assert len(batch["image"]) == len(batch["label"]) == 6
    assert batch["skipped"] == [str(broken)]


def test_evaluation_is_torchvisions_resize_and_crop() -> None:
    image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
    resize = v2.Resize(256, InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(evaluation_view(image, (224, 224)), v2.CenterCrop(224)(resize(image)))
    assert evaluation_view(image, (64, 160)).shape == (3, 64, 160)
    assert evaluation_view(image, (160, 64)).shape == (3, 160, 64)
    assert torch.equal(evaluation_view(image, (375, 500)), image)


def test_a_non_square_evaluation_never_shows_what_is_not_in_the_image() -> None:
    white = torch.full((1, 40, 40), 255, dtype=torch.uint8)
    assert evaluation_view(white, (16, 64)).min() == 255


@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("kind", ["jpg", "grey", "cmyk", "png", "alpha", "palette", "bmp", "tif", "gif", "webp"])
def test_files_of_every_kind_are_read_as_pillow_reads_them(tmp_path: Path, kind: str, in_chans: int) -> None:
    modes = {"grey": "L", "cmyk": "CMYK", "alpha": "RGBA", "palette": "P", "gif": "P"}
    picture = photo(1).convert(modes.get(kind, "RGB"))
    if kind == "alpha":
        picture.putalpha(photo(2).convert("L"))
    endings = {"grey": "jpg", "cmyk": "jpg", "alpha": "png", "palette": "png"}
    path = tmp_path / f"image.{endings.get(kind, kind)}"
    picture.save(path)
    read = read_image(path, in_chans)
    with Image.open(path) as file:
        expected = torch.from_numpy(np.array(file.convert(images.MODES[in_chans]))).reshape(30, 40, -1).movedim(-1, 0)
    assert read.shape == (in_chans, 30, 40)
    assert read.dtype == torch.uint8
    tolerance = 8 if in_chans == 1 else 1  # for a grey image of a colour JPEG libjpeg keeps the luminance in the file
    assert (read.int() - expected.int()).abs().max() <= tolerance


def test_sixteen_bits_become_eight_and_not_white(tmp_path: Path) -> None:
    ramp = (np.arange(1200) * 50).astype(np.uint16).reshape(30, 40)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert torch.equal(read_image(tmp_path / "deep.png")[1], torch.from_numpy((ramp >> 8).astype(np.uint8)))


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_what_is_no_image_is_unreadable(tmp_path: Path, content: Any) -> None:
    path = fill(tmp_path / "photos", 1) / "000.jpg"
    path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    with pytest.raises(Unreadable, match=r"000\.jpg"):
        read_image(path)


def test_images_are_read_without_torchvisions_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path / "photos", 1, ending="png") / "000.png"
    expected = read_image(path)
    monkeypatch.setattr(images, "decode_image", None)
    assert torch.equal(read_image(path), expected)


def test_digits_are_the_real_ones_split_by_class() -> None:
    data = Digits(image_size=8)
    train, val = data.sources
    assert (len(train), len(val), data.num_classes) == (1437, 360, 10)
    together = np.concatenate([train.images.numpy(), val.images.numpy()]).reshape(1797, -1)
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))
    assert np.bincount(val.labels).min() >= 34
    assert not np.array_equal(Digits(seed=1).sources.val.labels, val.labels)
    large = Digits(in_chans=3)
    assert large.sources.train.images.shape == (1437, 3, 32, 32)
    assert large.train_dataloader().dataset.transform.transforms[1].p == 0


def test_an_imagenet_layout_has_the_classes_of_its_folders(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "a"]):
        fill(tmp_path / "train" / name, 3 + number)
        fill(tmp_path / "val" / name / "deeper", 2)
    data = ImageFolder(str(tmp_path), image_size=8, batch_size=2)
    assert data.num_classes == 2
    assert data.sources.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.sources.val.labels.tolist() == [0, 0, 1, 1]
    assert data.sources.val.name(3) == str(tmp_path / "val/b/deeper/001.jpg")
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(ImageFolder(str(tmp_path)).sources.val) == 4


def test_a_folder_without_train_gives_its_subfolders_as_classes(tmp_path: Path) -> None:
    for name in "ab":
        fill(tmp_path / name, 10)
    data = ImageFolder(str(tmp_path), val_fraction=0.2)
    train, val = data.sources
    assert (len(train), len(val), data.num_classes) == (16, 4, 2)
    names = {source.name(i) for source in data.sources for i in range(len(source))}
    assert names == set(map(str, tmp_path.rglob("*.jpg")))
    again, other = ImageFolder(str(tmp_path), val_fraction=0.2), ImageFolder(str(tmp_path), val_fraction=0.2, seed=1)
    assert [again.sources.val.name(i) for i in range(4)] == [val.name(i) for i in range(4)]
    assert [other.sources.val.name(i) for i in range(4)] != [val.name(i) for i in range(4)]


@pytest.mark.parametrize("places", [["."], [".", "more/deeper"], ["one"]])
def test_a_folder_that_is_not_made_of_classes_has_no_labels(tmp_path: Path, places: list[str]) -> None:
    for place in places:
        fill(tmp_path / "photos" / place, 4, ending="PNG")
    (tmp_path / "photos" / places[-1] / ".hidden.png").write_bytes(b"")
    (tmp_path / "photos" / places[-1] / "notes.txt").write_text("no image")
    data = ImageFolder(str(tmp_path / "photos"), image_size=8, batch_size=3)
    assert data.num_classes == 0
    assert next(iter(data.train_dataloader()))["label"].tolist() == [-1] * 3
    assert len(data.sources.val) == 1
    assert len(data.sources.train) == 4 * len(places) - 1


def test_names_of_any_script_and_the_home_folder_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "竹" / "ü", 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = ImageFolder("~/竹").sources.train
    assert source.name(0).startswith(str(tmp_path / "竹" / "ü"))
    assert source.read(0).shape == (3, 30, 40)


def test_probe_loaders_are_whole_in_order_and_evenly_thinned() -> None:
    data = Numbered(24, batch_size=5)
    train, val = data.probe_loaders()
    assert flat(labels(train)) == flat(labels(val)) == list(range(24))
    assert flat(labels(data.probe_loaders(limit=6)[0])) == [0, 4, 8, 12, 16, 20]
    assert torch.equal(next(iter(train))["image"], torch.arange(5).view(5, 1, 1, 1).expand(5, 1, 4, 4).byte())


def test_probe_loaders_deal_the_images_to_the_processes_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(Numbered, "processes", (2, rank))
        data = Numbered(24, batch_size=5)
        assert flat(labels(data.probe_loaders(7)[1])) == [0, 3, 6, 10, 13, 17, 20]
        seen.append(flat(labels(data.probe_loaders(7, shared=True)[1])))
    assert seen == [[0, 6, 13, 20], [3, 10, 17]]


def write_cifar10(root: Path) -> np.ndarray:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3 * 32 * 32), np.uint8)
    for number, rows in enumerate(pixels):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 9, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return pixels.reshape(6, 4, 3, 32, 32)


def test_cifar10_is_read_from_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    data = TorchvisionData("CIFAR10", str(tmp_path), image_size=32, batch_size=4)
    assert (len(data.sources.train), len(data.sources.val), data.num_classes) == (20, 4, 10)
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["image"], torch.from_numpy(pixels[5]))
    assert batch["label"].tolist() == [0, 9, 2, 3]
    grey = TorchvisionData("CIFAR10", str(tmp_path), image_size=32, batch_size=4, in_chans=1)
    assert next(iter(grey.train_dataloader()))["image"].shape == (4, 1, 32, 32)


def test_imagenette_is_read_from_torchvisions_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            fill(tmp_path / "imagenette2-320" / split / wnid, 2, ending="JPEG")
    data = TorchvisionData("Imagenette", str(tmp_path), image_size=16, batch_size=2)
    assert data.num_classes == 2
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 16, 16)


def write_stl10(root: Path) -> np.ndarray:
    """Pixels of STL10's files, which hold an image's columns one after another, in the order that they are seen."""
    folder = root / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 96, 96), np.uint8)
    for name, part in {"train": pixels[:2], "test": pixels[2:4], "unlabeled": pixels[4:]}.items():
        part.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
    for name in ("train", "test"):
        np.array([1, 10], np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(map(str, range(10))))
    return pixels


def test_stl10_trains_on_its_images_without_labels_and_is_probed_on_those_with_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    pixels = write_stl10(tmp_path)
    data = TorchvisionData("STL10", str(tmp_path), image_size=96, unlabelled=True)
    assert torch.equal(data.sources.train.images, torch.from_numpy(pixels[4:]))
    assert data.sources.train.labels.tolist() == [-1] * 5
    train, val = (next(iter(loader)) for loader in data.probe_loaders())
    assert torch.equal(train["image"], torch.from_numpy(pixels[:2]))
    assert train["label"].tolist() == val["label"].tolist() == [0, 9]
    assert data.num_classes == 10
    assert torch.equal(TorchvisionData("STL10", str(tmp_path)).sources.train.images, train["image"])
    with pytest.raises(InputError, match="unlabelled: CIFAR10 has no images without labels"):
        TorchvisionData("CIFAR10", str(tmp_path), unlabelled=True)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "STL10", "Imagenette"])
def test_a_missing_torchvision_set_says_how_to_get_it(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is not there.*set download to true") as caught:
        TorchvisionData(name, str(tmp_path)).setup()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 6, "repeat": 4}, "repeat 4 must divide"),
        ({"in_chans": 2}, "in_chans must be one of 1, 3, 4"),
        ({"image_size": (0, 8)}, "must be positive"),
        ({"crop_scale": 0.0}, "crop_scale"),
        ({"flip": 2.0}, "flip"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Digits(**arguments)


def test_a_batch_larger_than_the_data_set_is_named() -> None:
    with pytest.raises(InputError, match="24 training samples do not fill a batch of 25"):
        Numbered(batch_size=25).train_dataloader()


def bad_folder(tmp_path: Path, case: str) -> Path:
    root = tmp_path / case
    if case == "empty":
        root.mkdir()
    elif case == "broken":
        root.mkdir()
        for number in range(3):
            (root / f"{number}.jpg").write_bytes(b"no image")
    elif case == "single":
        fill(root, 1)
    elif case == "differ":
        for name in ("train/a", "train/b", "val/a", "val/c"):
            fill(root / name, 1)
    elif case == "flat":
        for name in ("train/a", "train/b", "val"):
            fill(root / name, 1)
    return root


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such folder; expected"),
        ("empty", "no images in it; expected files that end in"),
        ("broken", "none of 3 images can be read"),
        ("single", "at least two images"),
        ("differ", "must have the classes of the others; in one only: b, c"),
        ("flat", "must have the classes of the others; in one only: a, b"),
    ],
)
def test_a_folder_that_cannot_be_used_gets_one_line(tmp_path: Path, case: str, message: str) -> None:
    root = bad_folder(tmp_path, case)
    with pytest.raises(InputError, match=message) as caught:
        ImageFolder(str(root)).setup()
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scanning_is_sorted_whatever_the_order_on_disk(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.jpg", "c.gif", "a/x/9.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(folders.scan(tmp_path)) == ["a/x/9.bmp", "b/1.jpg", "b/2.png", "c.gif"]
