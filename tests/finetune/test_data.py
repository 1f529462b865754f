"""Data for classification: few-shot subsets, flat validation folders, strong augmentation, one line for bad input."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import v2

from bamboo.errors import InputError
from bamboo.vision.augment import Erase, RandAugment
from bamboo.vision.data import Digits, ImageFolder
from bamboo.vision.views import TrainImages, evaluation_view, seed_streams
from tests.finetune.folders import NAMES, write_classes, write_flat

POLICY = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_classes(folder / "train", 0, 100)
    rows = write_flat(folder / "val", 100, 30)
    (folder / "names.txt").write_text("\n".join(f"{file} {NAMES[label]}" for file, label in rows))
    (folder / "numbers.tsv").write_text("\n".join(f"{file}\t{label}\t0\t0\t9\t9" for file, label in rows))
    boxes = "\n".join(f"{file[:-4]},{NAMES[label]} 0 0 9 9" for file, label in rows)
    (folder / "boxes.csv").write_text(f"ImageId,PredictionString\n{boxes}\n")
    return folder


def folder(root: Path, **kwargs: object) -> ImageFolder:
    return ImageFolder(str(root), **{"image_size": 16, "in_chans": 1, "batch_size": 10, **kwargs})


def test_shots_takes_so_many_of_each_class_and_the_same_again_for_the_same_seed() -> None:
    drawn = [Digits(image_size=8, shots=10, seed=seed).sources.train for seed in (0, 0, 1)]
    assert np.bincount(drawn[0].labels).tolist() == [10] * 10
    assert torch.equal(drawn[0].images, drawn[1].images)
    assert not torch.equal(drawn[0].images, drawn[2].images)


def test_a_fraction_keeps_the_shares_of_the_classes_and_lies_within_a_larger_one() -> None:
    whole = Digits(image_size=8).sources.train
    small, large = (Digits(image_size=8, fraction=share).sources.train for share in (0.1, 0.5))
    counts = np.bincount(whole.labels)
    assert np.bincount(small.labels).tolist() == [round(0.1 * count) for count in counts]
    rows = {tuple(image.flatten().tolist()) for image in large.images}
    assert all(tuple(image.flatten().tolist()) in rows for image in small.images)
    assert len(Digits(image_size=8, fraction=0.1).sources.val) == 360


@pytest.mark.parametrize("labels", ["names.txt", "numbers.tsv", "boxes.csv"])
def test_a_flat_validation_folder_gets_its_classes_from_a_file(root: Path, labels: str) -> None:
    data = folder(root, val_labels=labels)
    expected = [int(line.split("\t")[1]) for line in (root / "numbers.tsv").read_text().splitlines()]
    assert data.sources.val.labels.tolist() == expected
    assert data.classes == NAMES


def test_bad_folders_and_label_files_are_one_line(root: Path, tmp_path: Path) -> None:
    lines = (root / "names.txt").read_text().splitlines()
    for text, said in (
        ("\n".join([*lines[:4], "0104.png cat"]), "bad.txt, line 5: class 'cat' has no folder among the 10"),
        ("\n".join(lines[:-1]), "bad.txt has no line for .*0129.png"),
        ("\n".join([*lines[:4], "0104.png"]), "line 5: class ''"),
    ):
        (root / "bad.txt").write_text(text)
        with pytest.raises(InputError, match=said):
            _ = folder(root, val_labels="bad.txt").sources
    with pytest.raises(InputError, match=r"cannot read the labels .*none.txt"):
        _ = folder(root, val_labels="none.txt").sources
    with pytest.raises(InputError, match=r"its validation images must have the classes of the others"):
        _ = folder(root).sources
    write_classes(tmp_path / "train", 0, 20)
    (tmp_path / "train" / "digit_zz").mkdir()
    with pytest.raises(InputError, match="digit_zz: a class folder without images"):
        _ = folder(tmp_path).sources
    (tmp_path / "train" / "digit_zz").rmdir()
    with pytest.raises(InputError, match="class digit_0 has 2 training images, fewer than shots 3"):
        _ = folder(tmp_path, shots=3, val_fraction=0.01).sources


def test_predict_runs_over_any_folder(root: Path, tmp_path: Path) -> None:
    write_flat(tmp_path / "flat", 0, 4)
    write_classes(tmp_path / "nested", 0, 12)
    flat = folder(root, val_labels="names.txt", predict_root=str(tmp_path / "flat"))
    nested = folder(root, val_labels="names.txt", predict_root=str(tmp_path / "nested"))
    assert flat.predict_source().labels.tolist() == [-1] * 4
    source = nested.predict_source()
    assert [NAMES[label] for label in source.labels] == [Path(source.name(i)).parent.name for i in range(12)]
    assert [int(i) for batch in nested.predict_dataloader() for i in batch["index"]] == list(range(12))


def views(workers: int) -> torch.Tensor:
    data = Digits(image_size=16, batch_size=64, num_workers=workers, augment=POLICY, erase=0.25, shots=20, seed=3)
    return torch.cat([batch["image"] for batch in data.train_dataloader()])


def test_augmented_views_are_a_function_of_seed_epoch_and_index_whoever_draws_them() -> None:
    seed_streams(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    alone = views(0)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(alone, views(2))
    images = TrainImages(Digits(image_size=16).sources.train, (16, 16), augment=POLICY, erase=0.5)
    assert torch.equal(images[5, 1].images, images[5, 1].images)
    assert not torch.equal(images[5, 1].images, images[5, 2].images)


def timms(size: int, **kwargs: object) -> list[object]:
    """The steps of timm's own transform for training by the published recipe, or for evaluation."""
    options = {
        "auto_augment": POLICY,
        "re_prob": 0.25,
        "re_mode": "pixel",
        "color_jitter": None,
        "is_training": True,
        **kwargs,
    }
    return create_transform(size, interpolation="bicubic", **options).transforms


def test_crops_and_flips_are_timms() -> None:
    crop, flip = timms(224)[:2]
    ours = TrainImages(Digits(image_size=8).sources.train, (224, 224), 0.08).transform.transforms
    assert (tuple(ours[0].scale), tuple(ours[0].ratio)) == (tuple(crop.scale), tuple(crop.ratio))
    assert (ours[0].interpolation, ours[1].p) == (crop.interpolation, flip.p)


def test_randaugment_is_timms_own() -> None:
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours, theirs = RandAugment(POLICY), timms(24)[2]
    compared = 0
    for seed in range(60):
        seed_streams(seed)
        mine = ours(image)
        seed_streams(seed)
        try:
            expected = np.asarray(theirs(Image.fromarray(image.permute(1, 2, 0).numpy())))
        except ValueError:  # posterize to 0 bits, which Pillow does not do any more
            continue
        compared += 1
        assert np.array_equal(mine.permute(1, 2, 0).numpy(), expected), seed
    assert compared > 50


def test_every_strength_of_every_operation_works_and_grey_stays_grey() -> None:
    grey = torch.randint(0, 256, (1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(grey.expand(3, -1, -1).permute(1, 2, 0).numpy())
    ours = RandAugment(POLICY, 1)
    for operation in ours.policy.ops:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
    for seed in range(150):
        seed_streams(seed)
        channels = np.asarray(ours.policy(picture))
        assert (channels == channels[..., :1]).all()
        seed_streams(seed)
        assert np.array_equal(ours(grey)[0].numpy(), channels[..., 0])
    with pytest.raises(InputError, match="augment works on 1 or 3 channels"):
        RandAugment(POLICY, 4)


def test_posterize_to_no_bits_is_black() -> None:
    (posterize,) = {op.aug_fn for op in RandAugment(POLICY).policy.ops if "posterize" in op.aug_fn.__name__}
    assert posterize(Image.new("RGB", (4, 4), "white"), 0).getextrema() == ((0, 0),) * 3


def test_erasing_is_timms_on_the_standardised_image() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    *_, normalise, theirs = timms(32)
    theirs.probability = 1.0
    seed_streams(0)
    erased = theirs(normalise(image / 255))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    seed_streams(0)
    ours = Erase(1.0)(image)
    assert not torch.equal(ours, image)
    torch.testing.assert_close(ours, ((erased * std + mean) * 255).round().clamp(0, 255).to(torch.uint8))
    assert Erase(0.25).erasing.probability == timms(32)[-1].probability


@pytest.mark.parametrize(("size", "share"), [(32, 0.875), (224, 0.875), (384, 1.0), (448, 1.0)])
def test_evaluation_crops_as_the_published_protocol(size: int, share: float) -> None:
    image = torch.randint(0, 256, (3, 260, 390), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resize, crop = timms(size, is_training=False, crop_pct=share)[:2]
    resize = v2.Resize(resize.size, resize.interpolation)  # of bytes, which the first version rounds otherwise
    assert torch.equal(evaluation_view(image, (size, size)), crop(resize(image)))


def test_erasing_leaves_the_rest_of_the_image_alone() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    seed_streams(0)
    changed = (Erase(1.0)(image) != image).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0.02 * 1024 - 32 < area < 1024 / 3 + 32
    assert changed.sum() > 0.9 * area
    assert torch.equal(Erase(0.0)(image), image)
