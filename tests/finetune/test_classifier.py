"""What a classifier's run promises: resume, evaluation, the moving average, prediction, one line for bad input."""

import csv

import pytest
import timm
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.finetune.ema import EMA
from bamboo.recipes import Recipe
from bamboo.shapes import Patches, Shape
from bamboo.vision.data import Digits
from bamboo.vision.encoder import build_encoder
from tests.finetune.runs import SHORT, SIZES, last, run
from tests.interruption import Interruption
from tests.runs import CONFIGS, load, same, scalars

MIXED = [
    *("--model.init_args.mixup", "0.8", "--model.init_args.cutmix", "1.0", "--model.init_args.drop_path", "0.3"),
    *("--data.init_args.augment", "rand-m9-mstd0.5-inc1", "--data.init_args.erase", "0.25"),
    *("--data.init_args.fraction", "0.28", "--trainer.limit_val_batches", "0"),  # 4 steps in an epoch
    *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1", "--checkpoint.every_n_train_steps", "1"),
    *("--trainer.callbacks+=bamboo.finetune.ema.EMA", "--trainer.callbacks.decay", "0.9"),
]
TINY = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 1}
WARMING = Recipe(warmup_share=0.5)


def interrupt_before(step):
    return ["--trainer.callbacks+=tests.interruption.InterruptBefore", f"--trainer.callbacks.step={step}"]


def quiet(**kwargs):
    still = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", **{**still, **kwargs})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit", *MIXED) == 0
    return folder


@pytest.mark.parametrize("step", [4, 6])  # at the end of an epoch, within the next
def test_resume_equals_the_uninterrupted_run_with_mixing_drop_path_and_average(
    uninterrupted, tmp_path, monkeypatch, step
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interruption):
        run("fit", *MIXED, *interrupt_before(step))
    assert load(last(tmp_path))["global_step"] == step
    assert run("fit", *MIXED, "--ckpt_path", "last") == 0
    left, right = load(last(tmp_path)), load(last(uninterrupted))
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert same(left[key], right[key]), key
    mine, all_losses = (scalars(last(folder).parent.parent, "train/loss") for folder in (tmp_path, uninterrupted))
    assert len(all_losses) == 8
    assert {s: loss for s, loss in mine.items() if s >= step} == {s: x for s, x in all_losses.items() if s >= step}


def test_the_table_of_learning_rates_is_printed_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rates = [
        "--model.init_args.layer_decay",
        "0.65",
        "--data.init_args.shots",
        "10",
        "--trainer.limit_val_batches",
        "0",
    ]
    assert run("fit", *SHORT, *rates) == 0
    rows = {line[:12].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    peak = 2e-3 * 100 / 256
    assert float(rows["head"][-1]) == pytest.approx(peak, rel=1e-2)
    assert float(rows["embedding"][-2]) == pytest.approx(0.65**13, rel=1e-2)
    assert float(rows["block 0"][-1]) == pytest.approx(peak * 0.65**7, rel=1e-2)  # half the way up


def test_validation_counts_every_sample_once_and_is_that_of_the_average(uninterrupted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("validate", "--ckpt_path", str(last(uninterrupted)), "--data.init_args.batch_size", "64") == 0
    printed = {w[1]: float(w[3]) for w in map(str.split, capsys.readouterr().out.splitlines()) if "val/" in "".join(w)}
    assert printed["val/samples"] == 360
    assert printed["val/images_per_s"] > 0
    averaged, current = Classifier(10, **TINY), Classifier(10, **TINY)
    averaged.load_state_dict(load(last(uninterrupted))["state_dict"])
    current.load_state_dict(load(last(uninterrupted))["current_model_state"])
    source = Digits(image_size=16).sources.val
    right, logits = torch.from_numpy(source.labels), averaged.eval()(source.images)
    assert printed["val/top1"] == pytest.approx((logits.argmax(1) == right).float().mean().item(), abs=1e-6)
    top5 = (logits.topk(5).indices == right[:, None]).any(1).float().mean().item()
    assert printed["val/top5"] == pytest.approx(top5, abs=1e-6)
    assert printed["val/loss"] == pytest.approx(F.cross_entropy(logits, right).item(), rel=1e-5)
    assert not torch.equal(logits, current.eval()(source.images))


def test_validation_within_a_run_is_that_of_the_average_too(tmp_path):
    average, module = EMA(decay=0.5), Classifier(10, "scratch", **TINY, recipe=WARMING)
    trainer = quiet(max_epochs=1, limit_train_batches=4, callbacks=[average], num_sanity_val_steps=0)
    trainer.fit(module, datamodule=Digits(image_size=16, batch_size=100))
    during = {key: float(value) for key, value in trainer.callback_metrics.items() if key in ("val/top1", "val/loss")}
    (after,) = trainer.validate(module, datamodule=Digits(image_size=16, batch_size=100), verbose=False)
    assert during == pytest.approx({key: after[key] for key in during}, rel=1e-6)


def test_the_average_is_the_closed_form():
    module, seen = Classifier(10, "scratch", **TINY, recipe=WARMING), []

    class Watch(EMA):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append({name: tensor.detach().clone() for name, tensor in pl_module.named_parameters()})
            super().on_train_batch_end(trainer, pl_module, *args)

    trainer = quiet(max_epochs=1, limit_train_batches=5, limit_val_batches=0, callbacks=[Watch(decay=0.9)])
    trainer.fit(module, datamodule=Digits(image_size=16, batch_size=100))
    average = seen[0]  # the first update starts it
    for weights in seen[1:]:
        average = {name: 0.9 * average[name] + 0.1 * weight for name, weight in weights.items()}
    for name, weight in module.named_parameters():
        torch.testing.assert_close(weight.detach(), average[name], msg=name)


def test_the_csv_of_predict_holds_what_the_model_says_of_each_image(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("predict", "--ckpt_path", str(last(uninterrupted))) == 0
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    source = Digits(image_size=16).sources.val
    assert [row["file"] for row in rows] == [f"image {number}" for number in range(360)]
    assert [int(row["label"]) for row in rows] == source.labels.tolist()
    logits = Classifier.load_from_checkpoint(last(uninterrupted), weights_only=True).eval()(source.images)
    assert [int(row["predicted"]) for row in rows] == logits.argmax(1).tolist()
    probabilities = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(probabilities, logits.softmax(1).amax(1), rtol=0, atol=2e-6)


def test_batches_may_be_empty_in_evaluation():
    module = Classifier(10, **TINY).eval()
    nothing = {"image": torch.empty(0, 1, 16, 16, dtype=torch.uint8), "label": torch.empty(0, dtype=torch.int64)}
    some = {"image": torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "label": torch.tensor([3, 4])}
    module.log = lambda *args, **kwargs: None
    module.validation_step(some, 0)
    module.validation_step(nothing, 1)
    assert module.val_samples.compute() == 2
    assert module.val_loss.compute().isfinite()
    assert module.predict_step({**nothing, "index": nothing["label"]}, 0)["predicted"].shape == (0,)


@pytest.mark.parametrize("pool", ["avg", "token", "map"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_with_freeze_what_stands_above_the_encoder_alone_is_trained(pool, batch_norm):
    head = {"pool": pool, "freeze": True, "batch_norm": batch_norm, "head_init_std": 0.01}
    module = Classifier(10, "scratch", **TINY, **head, recipe=WARMING)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = quiet(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits(image_size=16, batch_size=100))
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    above = ("model.head", "model.attn_pool", "model.fc_norm")
    assert changed == {name for name in before if name.startswith(above)}
    assert all(p.grad is None for n, p in module.named_parameters() if not n.startswith(above))


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("fit", config="digits") == 2
    assert "no encoder to start from" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("classes", "model", "data", "message"),
    [
        (7, {}, {}, "the data have 10 classes and the model 7"),
        (10, {"mixup": 0.8}, {"batch_size": 99}, "batch_size 99 must be even"),
        (10, {}, {"image_size": 24}, "image_size and in_chans alike"),
        (10, {}, {"shots": 9999}, "fewer than shots 9999"),
        (10, {}, {"augment": "magic"}, "is no policy"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(classes, model, data, message):
    module = Classifier(classes, "scratch", **TINY, **model, recipe=WARMING)
    with pytest.raises(InputError, match=message):
        quiet(max_epochs=1, num_sanity_val_steps=0).fit(module, Digits(**{"image_size": 16, **data}))


def test_an_encoder_of_another_shape_or_patch_is_one_line(tmp_path):
    source = tmp_path / "encoder.ckpt"
    encoder = build_encoder(Shape(2, 32, 2), Patches.of(16, 4, 1))
    torch.save({"state_dict": encoder.state_dict(), "hyper_parameters": TINY}, source)
    assert all(part.training for part in Classifier(10, source, **TINY).modules())
    other = {"depth": 2, "width": 64, "heads": 2}
    with pytest.raises(InputError, match=r"2x32 with 2 heads, and model.init_args.shape says 2x64 with 2 heads"):
        Classifier(10, source, **{**TINY, "shape": other})
    with pytest.raises(InputError, match=r"patches of 4 pixels, and model.init_args.patch_size says 2"):
        Classifier(10, source, **{**TINY, "patch_size": 2})


def test_weights_of_oblong_images_without_their_size_are_fine_tuned_at_the_size_that_is_given(tmp_path):
    source, weights = tmp_path / "weights.pth", build_encoder(Shape(2, 64, 1), Patches.of((8, 16), 4, 1)).state_dict()
    torch.save(weights, source)
    model = Classifier(10, source, image_size=(8, 16), in_chans=1).model
    assert model.patch_embed.grid_size == (2, 4)
    assert torch.equal(model.blocks[1].attn.qkv.weight, weights["blocks.1.attn.qkv.weight"])


def test_a_checkpoint_of_another_model_is_one_line(uninterrupted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("validate", "--ckpt_path", str(last(uninterrupted)), "--model.init_args.pool", "token") == 2
    assert "checkpoint has pool avg and the configuration token" in capsys.readouterr().err


def test_contradictions_are_refused_before_anything_starts():
    frozen = {"freeze": True, "drop_path": 0.1}
    for wrong in ({"label_smoothing": 1.0}, {"mixup": -1.0}, {"drop_path": 1.0}, {"pool": "max"}, frozen):
        with pytest.raises(InputError):
            Classifier(**{"num_classes": 10, **TINY, **wrong})
    with pytest.raises(InputError, match="without a pretrained encoder"):
        Classifier(10)


IMAGES = sorted(
    path for path in (CONFIGS / "finetune").glob("[a-z]*.yaml") if path.stem not in ("glue", "texts", "scratch_glosses")
)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_one_that_the_command_takes(path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "fit",
                "--config",
                str(path),
                "--data.init_args.root=DIR" if "digits" not in path.stem else SIZES[0],
                *([] if "digits" not in path.stem else [SIZES[1]]),
                "--print_config",
            ]
        )
    assert caught.value.code in (0, None)
    assert "bamboo.finetune.classifier.Classifier" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_encoders_of_others_at_another_resolution_with_other_channels_and_classes(tmp_path, kind):
    if kind == "timm":
        sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32, "patch_size": 8}
        theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
        source, eps = tmp_path / "vit.safetensors", 1e-6
        save_file(theirs.state_dict(), source)
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        theirs = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8, layer_norm_eps=1e-12))
        source, eps = tmp_path / "hf", 1e-12
        theirs.save_pretrained(source)
    module = Classifier(7, source, image_size=(16, 48), in_chans=1)
    assert any(torch.equal(module.model.blocks[1].mlp.fc1.weight, tensor) for tensor in theirs.state_dict().values())
    assert module.hparams["layer_norm_eps"] == eps
    images = torch.randint(0, 256, (2, 1, 16, 48), dtype=torch.uint8)
    assert module.eval()(images).shape == (2, 7)
    trainer = quiet(max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "classifier.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "classifier.ckpt", weights_only=True)
    assert torch.equal(again.eval()(images), module(images))
