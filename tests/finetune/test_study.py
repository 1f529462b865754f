"""Does pretraining help where labels are few? On real digits, in small; docs/finetuning.md has the longer measurement.

The encoder is pretrained once, without labels, by the shipped configuration made smaller.
"""

import csv
from collections import Counter
from statistics import mean

import pytest
import torch

from bamboo.analysis import profile
from bamboo.checkpoints import load_encoder, pixel_scale
from bamboo.cli import main
from bamboo.finetune.commands import knn, probe
from bamboo.finetune.features import extract
from bamboo.finetune.knn import nearest_neighbour_accuracy
from bamboo.finetune.probing import LayerFeatures, by_layer, layer_features, probe_accuracies
from bamboo.vision.data import Digits
from tests.finetune.runs import pretrain, run
from tests.runs import scalars

pytestmark = pytest.mark.slow

SIZES = [
    *("--model.init_args.shape", '{"depth": 6, "width": 48, "heads": 4}'),
    *("--trainer.callbacks", "[]", "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches"),
]
STEPS = [
    *("--data.init_args.shots", "10", "--trainer.max_epochs", "150", "--trainer.check_val_every_n_epoch", "150"),
    *("--model.init_args.drop_path", "0", "--model.init_args.recipe.warmup_epochs", "5"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rate = ("--model.init_args.recipe.base_lr", "4e-3", "--model.init_args.recipe.warmup_epochs", "5")
        assert pretrain(*SIZES, "0", "--trainer.max_epochs", "60", *rate) == 0
    return folder / "runs/quickstart/version_0/checkpoints/last.ckpt"


SEEDS = (0, 1)
LABELS = ("encoder", "fresh weights")


def accuracy(config, name, seed, *args):
    assert run("fit", *SIZES, "1.0", *STEPS, "--seed_everything", str(seed), *args, config=config) == 0
    return list(scalars(f"runs/{name}/version_{seed}", "val/top1").values())[-1]


def test_with_ten_labels_per_class_pretraining_then_fine_tuning_beats_training_from_scratch(
    encoder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    base_lr = ("--model.init_args.recipe.base_lr", "4.0e-3")
    start = ("--model.init_args.encoder", str(encoder), "--model.init_args.layer_decay", "1.0")
    tuned = [accuracy("digits", "digits", seed, *start, *base_lr) for seed in SEEDS]
    scratch = [accuracy("scratch_digits", "scratch-digits", seed, *base_lr) for seed in SEEDS]
    print(f"fine-tuned {tuned}, from scratch {scratch}")
    assert mean(tuned) > mean(scratch) + 0.02


def data(**kwargs):
    return Digits(image_size=16, batch_size=100, **kwargs)


def test_the_linear_probe_of_the_pretrained_encoder_beats_that_of_a_fresh_one(encoder, tmp_path, capsys):
    probe(str(encoder), data="digits", out=tmp_path, baseline=True)
    with (tmp_path / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [*"0123456"] * 2
    best = {label: max(float(row["accuracy"]) for row in rows if row["encoder"] == label) for label in LABELS}
    print(best)
    assert best["encoder"] > best["fresh weights"] + 0.02
    for name in ("probe.png", "probe.svg"):
        assert (tmp_path / name).stat().st_size > 5000
    assert "best at layer" in capsys.readouterr().out


def test_similarity_by_depth_is_that_of_the_profile(encoder):
    model, _ = load_encoder(encoder)
    loader = data().probe_loaders(100)[1]
    ours = by_layer(extract(layer_features(model, pixel_scale(encoder)), loader, torch.device("cpu"))).similarity
    measured = profile(model, [pixel_scale(encoder)(batch["image"]) for batch in loader], ["token_similarity"])
    expected = torch.tensor(measured.curve("token_similarity").mean, dtype=torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_features_are_those_of_timms_own_intermediates(encoder):
    model, _ = load_encoder(encoder)
    (batch,) = data().probe_loaders(50)[1]
    found = by_layer(extract(layer_features(model, pixel_scale(encoder)), [batch], torch.device("cpu")))
    images = pixel_scale(encoder)(batch["image"])
    with torch.no_grad():
        states = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        normed = model.forward_features(images)[:, model.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(found.features[1:], torch.stack([state.mean(1) for state in states]))
    torch.testing.assert_close(found.normed, normed)
    assert torch.equal(found.labels, batch["label"])


def test_knn_and_probe_run_the_encoder_once_over_the_data(encoder, tmp_path, monkeypatch, capsys):
    seen = Counter()
    from timm.models.vision_transformer import VisionTransformer

    forward = VisionTransformer.forward_features

    def counting(self, images, *args, **kwargs):
        seen["images"] += len(images)
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(VisionTransformer, "forward_features", counting)
    knn(str(encoder), data="digits")
    assert seen["images"] == 1797
    assert "nearest neighbours of 360 images among 1437\n" in capsys.readouterr().out
    probe(str(encoder), data="digits", out=tmp_path, samples=100, epochs=2)
    assert seen["images"] == 1797 + 200


def test_knn_is_a_vote_by_hand():
    train = (torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0]]), torch.tensor([0, 0, 1]))
    test = (torch.tensor([[1.0, 0.2], [0.1, 1.0]]), torch.tensor([0, 0]))
    assert nearest_neighbour_accuracy(train, test, k=1) == 0.5


def test_probes_of_layers_do_not_touch_each_other():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    useful = torch.eye(3)[labels] + 0.1 * torch.randn(600, 3, generator=generator)
    noise = torch.randn(600, 3, generator=generator)
    both = LayerFeatures(torch.stack([noise, useful]), labels, torch.zeros(2))
    alone = LayerFeatures(useful[None], labels, torch.zeros(1))
    together = probe_accuracies(both, both, torch.device("cpu"))[0]
    assert together[1] == probe_accuracies(alone, alone, torch.device("cpu"))[0, 0] == 1
    assert together[0] < 0.5


def test_bad_input_is_one_line(encoder, tmp_path, capsys):
    from bamboo.errors import InputError

    (tmp_path / "empty").mkdir()
    for bad in (
        {"data": str(tmp_path / "none")},
        {"data": str(tmp_path / "empty")},
        {"data": "digits", "k": [0]},
    ):
        with pytest.raises(InputError):
            knn(str(encoder), **bad)
    with pytest.raises(InputError):
        knn(str(tmp_path / "none.ckpt"), data="digits")
    assert main([]) == 0
