"""`bamboo knn` and `bamboo probe` as typed, on one process and on two, and the features that they keep on disk."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.neighbors import KNeighborsClassifier
from timm.models.vision_transformer import VisionTransformer

from bamboo.checkpoints import load_encoder, pixel_scale
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.features import extract, fingerprint
from bamboo.precision import autocast
from bamboo.shapes import Patches, Shape
from bamboo.vision.data import ImageFolder
from bamboo.vision.encoder import build_encoder, set_norm_eps
from bamboo.vision.images import Arrays
from bamboo.vision.pixels import PixelScale
from bamboo.vision.views import evaluation_view
from tests.finetune.folders import write_classes
from tests.finetune.runs import pretrain
from tests.runs import ROOT, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files, and a masked autoencoder of grey images of 16 pixels."""
    place = tmp_path_factory.mktemp("commands")
    write_classes(place / "images/train", 0, 60)
    write_classes(place / "images/val", 100, 31)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        short = ("--trainer.max_epochs", "1", "--trainer.callbacks", "[]", "--data.init_args.fraction", "0.3")
        assert pretrain(*short) == 0
        Path("runs/quickstart/version_0/checkpoints/last.ckpt").rename("mae.ckpt")
    return place


@pytest.fixture(autouse=True)
def at_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture
def seen(monkeypatch):
    """The batches that encoders run over, and the type of what their MLPs give."""
    batches = []
    forward = VisionTransformer.forward_features

    def counting(self, images, *args, **kwargs):
        hook = self.blocks[0].mlp.fc1.register_forward_hook(
            lambda *found: batches.append((len(images), found[2].dtype))
        )
        try:
            return forward(self, images, *args, **kwargs)
        finally:
            hook.remove()

    monkeypatch.setattr(VisionTransformer, "forward_features", counting)
    return batches


def knn(*args):
    return main(["knn", "mae.ckpt", "--data", "images", *args])


def numbers(text):
    """Top-1 and top-5 of the table that `knn` prints, by features and k."""
    found = re.findall(r"^(\w+) +(\d+) +([\d.]+)% +([\d.]+)%$", text, re.MULTILINE)
    return {(name, int(k)): (float(top1), float(top5)) for name, k, top1, top5 in found}


def by_hand(name, k):
    """The same in percent, by scikit-learn's classifier on timm's own features."""
    encoder, _ = load_encoder("mae.ckpt")
    parts = []
    for source in ImageFolder("images", image_size=16, in_chans=1).sources:
        images = torch.stack([evaluation_view(source.read(i), (16, 16)) for i in range(len(source))])
        with torch.no_grad():
            tokens = encoder.forward_features(pixel_scale("mae.ckpt")(images))
        parts.append((tokens[:, 0] if name == "cls" else tokens[:, 1:].mean(dim=1), source.labels))
    (train, labels), (test, truth) = parts
    peer = KNeighborsClassifier(k, metric="cosine", weights=lambda distances: np.exp(-distances / 0.07))
    shares = peer.fit(train, labels).predict_proba(test)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :5]
    right = (peer.classes_[best] == truth[:, None]) & (np.take_along_axis(shares, best, 1) > 0)
    return 100 * right[:, 0].mean(), 100 * right.any(axis=1).mean()


def test_both_features_and_several_numbers_of_neighbours_are_scikit_learns(capsys):
    assert knn("--k", "1", "5", "20", "--features", "mean", "cls") == 0
    output = capsys.readouterr().out
    assert "nearest neighbours of 31 images among 60\n" in output
    found = numbers(output)
    assert found.keys() == {(name, k) for name in ("mean", "cls") for k in (1, 5, 20)}
    for place, accuracy in found.items():
        assert accuracy == pytest.approx(by_hand(*place), abs=0.006), place
    assert len(set(found.values())) > 3


def test_features_are_kept_for_the_same_encoder_images_and_precision_alone(seen, capsys, tmp_path):
    cache = ["--cache", str(tmp_path)]
    assert knn(*cache) == 0
    expected = numbers(capsys.readouterr().out)
    assert sum(count for count, _ in seen) == 91
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 2
    seen.clear()
    assert knn("--k", "3", "20", *cache) == 0
    assert numbers(capsys.readouterr().out)["mean", 20] == expected["mean", 20]
    assert knn("--batch-size", "7", *cache) == 0
    assert numbers(capsys.readouterr().out) == expected
    assert not seen

    def is_run_again(*args):
        seen.clear()
        assert knn(*args, *cache) == 0
        return sum(count for count, _ in seen)

    assert is_run_again("--samples", "20") == 40
    assert is_run_again("--precision", "bf16") == 91
    assert {kind for _, kind in seen} == {torch.bfloat16}
    image = next(Path("images/val").rglob("*.png"))
    later = time.time() + 100
    os.utime(image, (later, later))
    assert is_run_again() == 31  # the validation images
    content = torch.load("mae.ckpt", weights_only=True)
    content["state_dict"]["mae.encoder.blocks.0.mlp.fc2.bias"][3] += 1e-3
    torch.save(content, tmp_path / "other.ckpt")
    seen.clear()
    assert main(["knn", str(tmp_path / "other.ckpt"), "--data", "images", *cache]) == 0
    assert sum(count for count, _ in seen) == 91
    seen.clear()
    for _ in range(2):
        assert main(["probe", "mae.ckpt", "--data", "images", "--epochs", "2", *cache, "--out", str(tmp_path)]) == 0
    assert sum(count for count, _ in seen) == 91
    assert kept < {path.name for path in tmp_path.iterdir()}


def test_what_features_follow_from_is_in_their_name():
    def name(heads=2, eps=1e-6, label=0, pixel=0, mean=0.5, setting=""):
        encoder = build_encoder(Shape(1, 16, heads), Patches.of(8, 4, 1))
        set_norm_eps(encoder, eps)
        for parameter in encoder.parameters():
            torch.nn.init.ones_(parameter)
        images = torch.full((2, 1, 8, 8), pixel, dtype=torch.uint8)
        return fingerprint(encoder, PixelScale(1, [mean], [0.2]), Arrays(images, np.array([0, label])), setting)

    assert name() == name()
    others = [
        name(heads=4),
        name(eps=1e-5),
        name(label=1),
        name(pixel=1),
        name(mean=0.4),
        name(2, 1e-6, 0, 0, 0.5, "x"),
    ]
    assert len({name(), *others}) == 7


def test_a_file_of_the_cache_that_is_damaged_is_made_anew(seen, capsys, tmp_path):
    assert knn("--cache", str(tmp_path)) == 0
    expected = numbers(capsys.readouterr().out)
    path = next(tmp_path.iterdir())
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    features = load(path.read_bytes())
    path.write_bytes(path.read_bytes()[:100])
    seen.clear()
    assert knn("--cache", str(tmp_path)) == 0
    assert numbers(capsys.readouterr().out) == expected
    assert sum(count for count, _ in seen) in (31, 60)
    assert same(load(path.read_bytes()), features)


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_images_that_cannot_be_read_are_said_and_an_incomplete_pass_is_not_kept(capsys, tmp_path):
    shutil.copytree("images", tmp_path / "images")
    paths = sorted((tmp_path / "images/val").rglob("*.png"))
    content, times = paths[3].read_bytes(), (1, 1)

    def write(content):  # as after a hiccup of a network disk, which changes no times
        paths[3].write_bytes(content)
        os.utime(paths[3], times)

    write(bytes(len(content)))
    words = ["knn", "mae.ckpt", "--data", str(tmp_path / "images"), "--cache", str(tmp_path / "cache")]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert f"1 images cannot be read and are left out, the first is {paths[3]}\n" in output
    assert "nearest neighbours of 30 images among 60\n" in output
    write(content)
    assert main(words) == 0
    assert "nearest neighbours of 31 images among 60\n" in capsys.readouterr().out


def test_an_encoder_that_has_diverged_has_no_score(capsys, tmp_path):
    content = torch.load("mae.ckpt", weights_only=True)
    content["state_dict"]["mae.encoder.blocks.1.mlp.fc2.bias"][3] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    for words in (["knn"], ["probe", "--out", str(tmp_path)]):
        assert main([words[0], str(tmp_path / "nan.ckpt"), "--data", "images", *words[1:]]) == 2
        assert "not finite: the encoder has diverged" in capsys.readouterr().err


def test_images_without_a_label_have_no_say():
    def batch(start):
        number = torch.arange(start, start + 4)
        return {"image": number.float()[:, None], "label": torch.where(number % 3 == 1, -1, number), "index": number}

    features = extract(lambda images: {"mean": images}, [batch(4), batch(0)], torch.device("cpu"))
    assert features["label"].tolist() == [0, 2, 3, 5, 6]
    assert features["mean"].flatten().tolist() == [0, 2, 3, 5, 6]
    nothing = {**batch(0), "label": torch.full((4,), -1)}
    with pytest.raises(InputError, match="none of the images has a label"):
        extract(lambda images: {"mean": images}, [nothing], torch.device("cpu"))


def test_a_place_that_takes_no_files_is_seen_before_anything_runs(seen, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert knn("--cache", str(tmp_path / "file")) == 2
    assert f"cannot write into {tmp_path / 'file'}" in capsys.readouterr().err
    assert main(["probe", "mae.ckpt", "--data", "images", "--out", str(tmp_path / "file")]) == 2
    assert f"cannot write into {tmp_path / 'file'}" in capsys.readouterr().err
    assert not seen


def test_the_device_decides_unless_the_person_does():
    cpu = torch.device("cpu")
    assert not autocast("auto", cpu)._enabled
    assert not autocast("32", cpu)._enabled
    assert autocast("bf16", cpu)._enabled


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--k", "0"], "k and samples must be at least 1, got 0"),
        (["--samples", "0"], "k and samples must be at least 1, got 20 and 0"),
        (["--samples", "-3"], "k and samples must be at least 1, got 20 and -3"),
        (["--k", "few"], "k: expected int, got few"),
        (["--features", "max"], "features: expected one of"),
        (["--precision", "16"], "precision: expected one of"),
    ],
)
def test_bad_options_are_one_line(args, message, capsys):
    assert knn(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_encoder_without_a_class_token_has_no_such_features(capsys):
    words = ["knn", "timm:vit_base_patch16_siglip_224@random", "--data", "images", "--features", "cls"]
    assert main(words) == 2
    assert "no class token: give --features mean" in capsys.readouterr().err


def test_the_rate_of_a_layer_is_in_the_table_and_in_what_is_printed(capsys, tmp_path):
    words = ["probe", "mae.ckpt", "--data", "images", "--epochs", "5", "--lr", "1e-7", "0.03", "--out"]
    assert main([*words, str(tmp_path)]) == 0
    with (tmp_path / "probe.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["lr"] for row in table} <= {"1e-07", "0.03"}
    layer, chosen = re.search(r"best at layer (\d) of 2, lr (\S+), on held-out", capsys.readouterr().out).groups()
    assert table[int(layer)]["lr"] == chosen == "0.03"
    assert main([*words, str(tmp_path), "--lr", "0"]) == 2
    assert "lr, epochs and samples must be positive" in capsys.readouterr().err
    assert main([*words, str(tmp_path), "--samples", "9"]) == 2
    assert "9 training images are too few for a probe: give 10 or more" in capsys.readouterr().err


def test_no_more_than_all_training_images_vote(capsys):
    assert knn("--k", "20", "1000") == 0
    assert [k for _, k in numbers(capsys.readouterr().out)] == [20, 60]


def everywhere(*words):
    """A command on two processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bamboo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "knn mae.ckpt --data images --k 1 20 --features mean cls",
        "probe mae.ckpt --data images --epochs 3 --lr 0.01 0.1 --cache OUT/cache --out OUT/probe",
        "profile mae.ckpt --data images --out OUT/profile",
        "profile timm:vit_tiny_patch16_224@random --data images/val --samples 5 --image-size 32 --out OUT/profile",
    ],
)
def test_two_processes_print_and_write_what_one_does(words, capsys, tmp_path):
    one, two = ([word.replace("OUT", str(tmp_path / name)) for word in words.split()] for name in ("one", "two"))
    assert main(one) == 0
    expected = capsys.readouterr().out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    done = everywhere(*two)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    for path in (tmp_path / "one").rglob("*.csv"):
        rows = [
            np.genfromtxt(each, delimiter=",", dtype=str)
            for each in (path, tmp_path / "two" / path.relative_to(tmp_path / "one"))
        ]
        assert rows[0].shape == rows[1].shape
        for left, right in zip(rows[0].ravel(), rows[1].ravel(), strict=True):
            assert left == right or float(left) == pytest.approx(float(right), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_what_is_for_one_process_is_refused_on_two(tmp_path):
    done = everywhere("export", "mae.ckpt", "--out", str(tmp_path / "exported"))
    assert done.returncode
    assert "bamboo: error: bamboo export is for one process: start it without torchrun\n" in done.stderr
    assert not (tmp_path / "exported").exists()
