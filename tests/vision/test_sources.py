"""Images from tar files, Parquet files and Hugging Face data sets are those of the same folder, batch by batch."""

import os
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from torchvision.datasets import CIFAR10

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.locations import Location, parse_location
from bamboo.vision import tar_shards
from bamboo.vision.data import ImageFolder
from bamboo.vision.images import Encoded, Source, read_image
from bamboo.vision.sources import open_source
from tests.runs import fit, last, load, same
from tests.vision.sources import COUNTS, KINDS, as_folder, as_parquet, as_tar, examples, jpeg, write_tar


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in every form, by its name."""
    root = tmp_path_factory.mktemp("sources")
    for name, write in {"folder": as_folder, **KINDS}.items():
        write(root / name)
    return {name: root / name for name in ("folder", *KINDS)}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def assert_same_images(left: Source, right: Source) -> None:
    assert len(left) == len(right)
    assert left.labels.tolist() == right.labels.tolist()
    assert left.labels.dtype == np.int64
    assert left.classes == right.classes
    for index in range(len(left)):
        assert torch.equal(left.read(index), right.read(index))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_holds_the_images_of_the_folder(roots: dict[str, Path], kind: str) -> None:
    splits = open_source(str(roots[kind]), in_chans=3)
    for split, source in zip(COUNTS, splits, strict=True):
        assert isinstance(source, Encoded)
        assert [source.encoded(i).tobytes() for i in range(len(source))] == [content for content, _ in examples(split)]
        assert_same_images(source, getattr(open_source(str(roots["folder"]), in_chans=3), split))
        odd = np.arange(1, len(source), 2)
        assert torch.equal(source.subset(odd).read(1), source.read(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_are_those_of_the_folder(roots: dict[str, Path], kind: str, workers: int) -> None:
    batches = []
    for name in ("folder", kind):
        data = ImageFolder(str(roots[name]), image_size=16, batch_size=4, num_workers=workers, seed=3)
        data.setup()
        batches.append([*data.train_dataloader(), *data.val_dataloader()])
    assert all(map(same, *batches))


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_reads_the_same(roots: dict[str, Path], kind: str) -> None:
    train = open_source(str(roots[kind]), in_chans=1).train
    train.read(0)
    sent = pickle.dumps(train)
    assert len(sent) < 5000
    assert_same_images(pickle.loads(sent), train)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_one_file_is_a_source_of_which_a_share_is_held_out(roots: dict[str, Path], kind: str) -> None:
    (path, *_) = sorted(roots[kind].rglob(f"val*.{kind}"))
    data = ImageFolder(str(path), val_fraction=0.5)
    assert sum(map(len, data.sources)) == (4 if kind == "parquet" else 2)


def test_torchvisions_sets_are_sources(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = {"data": generator.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"0123456789"]}))
    unchecked = pytest.MonkeyPatch()
    unchecked.setattr(CIFAR10, "_check_integrity", lambda _: True)
    unchecked.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    with unchecked.context():
        train, val = open_source(f"torchvision:CIFAR10,root={tmp_path}", in_chans=3)
    unchecked.undo()
    assert (len(train), len(val)) == (20, 4)


def test_the_tar_files_beside_an_unpacked_imagenet_are_left_alone(tmp_path: Path) -> None:
    as_folder(tmp_path)
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {"000.jpg": jpeg(0)})
    assert len(open_source(str(tmp_path), in_chans=3).train) == COUNTS["train"]


def test_tar_files_without_labels_have_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0), "a.txt": b"a caption", "b/._x.jpg": b"", "b/x.png": jpeg(1)})
    train, val = open_source(str(tmp_path), in_chans=3)
    assert val is None
    assert train.labels.tolist() == [-1, -1]
    assert train.classes == ()
    assert train.name(1) == f"{tmp_path}/a.tar/b/x.png"


def test_members_with_long_names_are_found_where_tarfile_finds_them(tmp_path: Path) -> None:
    names = [f"{'deep/' * 40}{number}{'ü' * 60}.left.jpg" for number in range(3)]
    write_tar(tmp_path / "a.tar", {name: jpeg(number) for number, name in enumerate(names)})
    train = open_source(str(tmp_path), in_chans=3).train
    with tarfile.open(tmp_path / "a.tar") as tar:
        for index, name in enumerate(names):
            assert train.name(index).endswith(name)
            assert train.encoded(index).tobytes() == tar.extractfile(name).read()


def test_tar_files_are_read_through_once_and_again_when_one_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_tar(tmp_path / "data")
    built = []
    index = tar_shards.index
    monkeypatch.setattr(tar_shards, "index", lambda files, keep: built.append(len(files)) or index(files, keep))
    first = open_source(str(tmp_path / "data"), in_chans=3)
    assert built == [2, 2]
    assert_same_images(open_source(str(tmp_path / "data"), in_chans=3).train, first.train)
    assert built == [2, 2]
    write_tar(tmp_path / "data" / "val-01.tar", {"new.jpg": jpeg(7), "new.cls": b"1"})
    assert len(open_source(str(tmp_path / "data"), in_chans=3).val) == 3
    assert built == [2, 2, 2]
    for cached in (tmp_path / "cache" / "bamboo").iterdir():
        cached.write_bytes(cached.read_bytes()[:-100])
    assert_same_images(open_source(str(tmp_path / "data"), in_chans=3).train, first.train)
    assert built == [2] * 5


def cut(path: Path, size: int) -> None:
    os.truncate(path, path.stat().st_size - size)


@pytest.mark.parametrize(
    ("member", "place", "kept"),
    [
        ("009.jpg", "header", 8),  # of image 8 more might have followed
        ("009.jpg", "data", 9),
        ("009.cls", "header", 9),  # the label of image 9 is lost
        ("009.cls", "end", 9),
        ("009.cls", "one block of zeros", 9),  # where two end a tar file
        ("005.jpg", "data", 5),
    ],
)
def test_a_tar_file_that_is_cut_short_is_named_and_used_only_if_asked(
    tmp_path: Path, member: str, place: str, kept: int
) -> None:
    as_tar(tmp_path)
    path = tmp_path / "train-01.tar"
    with tarfile.open(path) as tar:
        info = tar.getmember(member)
    end = info.offset_data + -(-info.size // 512) * 512
    os.truncate(path, {"header": info.offset + 99, "data": info.offset_data + 9, "end": end}.get(place, end + 512))
    with pytest.raises(InputError, match=r"train-01.tar is cut short: copy it again, or .*incomplete=keep"):
        open_source(str(tmp_path), in_chans=3)
    train = open_source(f"{tmp_path},incomplete=keep", in_chans=3).train
    assert_same_images(train, open_source_of_folder(tmp_path / "folder").subset(np.arange(kept)))


def open_source_of_folder(root: Path) -> Source:
    as_folder(root)
    return open_source(str(root), in_chans=3).train


def table(**columns: list[object]) -> pyarrow.Table:
    return pyarrow.table(columns)


def write_bad(root: Path, case: str) -> None:
    """A source in which something is wrong."""
    if case in ("cut parquet", "no column"):
        as_parquet(root)
        if case == "cut parquet":
            cut(root / "data" / "train-00001-of-00002.parquet", 10)
    elif case in ("no images", "null label", "broken", "text", "real label"):
        root.mkdir()
        contents = {"no images": None, "broken": [b"no image"] * 3}.get(case, [jpeg(0)] * 3)
        labels = {"null label": [0, None, 1], "real label": [0.5, 1.0, 2.0]}.get(case, [0, 1, 1])
        columns = {"other": [1, 2, 3]} if contents is None else {"image": contents, "label": labels}
        parquet.write_table(table(**columns), root / "train.parquet")
    elif case == "several labels":
        classes = datasets.ClassLabel(names=["a", "b"])
        features = datasets.Features({"image": datasets.Image(), "fine": classes, "coarse": classes})
        images = [{"bytes": jpeg(0), "path": None}] * 2
        columns = {"image": images, "fine": [0, 1], "coarse": [1, 0]}
        datasets.Dataset.from_dict(columns, features).save_to_disk(root)
    elif case == "empty tar":
        write_tar(root / "a.tar", {"a.txt": b"a caption"})
    elif case == "no tar":
        root.mkdir()
        (root / "a.tar").write_bytes(b"no tar file" * 100 + bytes(1024))
    elif case == "some labels":
        write_tar(root / "a.tar", {"a.jpg": jpeg(0), "a.cls": b"1", "b.jpg": jpeg(1)})
    elif case == "bad json":
        write_tar(root / "a.tar", {"a.jpg": jpeg(0), "a.json": b'{"label": 3'})
    elif case == "more labels":
        write_tar(root / "a.tar", {"a.jpg": jpeg(0), "a.cls": b"2"})
        (root / "classes.txt").write_text("ant\nbee\n")
    elif case == "unlabelled val":
        write_tar(root / "train.tar", {"a.jpg": jpeg(0), "a.cls": b"1"})
        write_tar(root / "val.tar", {"b.jpg": jpeg(1)})
    elif case != "missing":
        as_tar(root)


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("missing", "", "no such folder; expected"),
        ("cut parquet", "", "train-00001-of-00002.parquet is cut short or no Parquet file"),
        ("no column", ",image=photo", "has no column 'photo': its columns are img, label"),
        ("no column", ",label=kind", "has no column 'kind': its columns are img, label"),
        ("no column", ",train=all", "has no split 'all': its splits are train, validation"),
        ("no images", "", "has no column of images: its columns are other"),
        ("null label", "", "column 'label' has no value in 1 of 3 rows"),
        ("real label", "", "column 'label' holds neither numbers nor names of classes"),
        ("broken", "", "none of 3 images can be read, the first is .*, train, row 0"),
        ("several labels", "", "several columns of the kind label, fine, coarse: add ,label=fine"),
        ("empty tar", "", "no images in its tar files"),
        ("no tar", "", "a.tar is no tar file that can be read"),
        ("some labels", "", "1 of 2 images in its tar files have no label"),
        ("bad json", "", "a.tar/a.json holds no label"),
        ("more labels", "", "classes.txt names 2 classes, and a label is 2"),
        ("unlabelled val", "", "its validation images have no labels, and the others have"),
        ("fine", ",image=photo", "a source of the kind 'tar' has no option 'image'"),
        ("fine", ",incomplete=maybe", "unknown value of incomplete 'maybe'"),
        ("fine", ",imgae=photo", "unknown option 'imgae': did you mean 'image'"),
    ],
)
def test_a_source_that_cannot_be_used_gets_one_line(tmp_path: Path, case: str, options: str, message: str) -> None:
    write_bad(tmp_path / "data", case)
    with pytest.raises(InputError, match=message) as caught:
        open_source(f"{tmp_path / 'data'}{options}", in_chans=3)
    assert "\n" not in str(caught.value)


def test_what_is_not_on_the_hub_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knn", "timm:vit_tiny_patch16_224@random", "--data", "hf:nobody/nothing"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bamboo: error: hf:nobody/nothing cannot be read: ")


def test_several_labels_are_chosen_from_by_name(tmp_path: Path) -> None:
    write_bad(tmp_path / "data", "several labels")
    assert open_source(f"{tmp_path / 'data'},label=coarse", in_chans=3).train.labels.tolist() == [1, 0]


def test_an_empty_val_holds_out_a_share_of_the_training_images(roots: dict[str, Path]) -> None:
    assert open_source(f"{roots['parquet']},val=", in_chans=3).val is None


def test_images_that_a_row_gives_by_path_are_read_from_there(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(5))
    images = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.jpg")]}, datasets.Features(image=datasets.Image()))
    images.save_to_disk(tmp_path / "data")
    read = open_source(str(tmp_path / "data"), in_chans=3).train.read(0)
    assert torch.equal(read, read_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/a, b=c/images", Location("/data/a, b=c/images", {})),
        ("hf:a/b,config=x y,val=", Location("hf:a/b", {"config": "x y", "val": ""})),
        ("digits", Location("digits", {})),
    ],
)
def test_options_are_what_follows_the_last_path(text: str, expected: Location) -> None:
    assert parse_location(text, ("config", "val")) == expected


def test_the_commands_take_any_source(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["--model.init_args.in_chans", "3", "--trainer.max_epochs", "1", "--data.class_path", "ImageFolder"]
    weights = []
    for number, kind in enumerate(("folder", "tar", "parquet")):
        root = ["--data.init_args.root", str(roots[kind]), "--data.init_args.batch_size", "5"]
        args = [*shared, *root, "--data.init_args.in_chans", "3"]
        assert fit(*args) == 0, capsys.readouterr().err
        weights.append(load(last(tmp_path, version=number))["state_dict"])
        checkpoint, outputs = str(last(tmp_path)), []
        for command in (["knn"], ["probe", "--epochs", "2", "--out", f"probe_{kind}"]):
            assert main([command[0], checkpoint, "--data", str(roots[kind]), *command[1:]]) == 0
            outputs.append(capsys.readouterr().out.splitlines()[-1])
        assert main(["profile", checkpoint, "--data", str(roots[kind]), "--out", f"profile_{kind}"]) == 0
        table = (tmp_path / f"profile_{kind}" / "profile.csv").read_text()
        if kind == "folder":
            expected = outputs, table
        assert (outputs, table) == expected
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])
