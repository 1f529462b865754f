"""One step of a classifier is what timm's own parts make of it, and reaches every weight that it should."""

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F

from bamboo.finetune.classifier import Classifier
from bamboo.recipes import Recipe
from bamboo.shapes import Patches, Shape
from bamboo.vision.data import Digits
from bamboo.vision.encoder import build_encoder
from bamboo.vision.heads import set_drop_path

TINY = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 1}
PUBLISHED = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}


def classifier(**kwargs):
    torch.manual_seed(0)
    return Classifier(10, "scratch", **{**TINY, "head_init_std": 0.5, **kwargs})


def batch(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return {"image": images, "label": torch.arange(count) % 10}


def loss_of(module, stage="train"):
    return module.compute(batch(), 0, stage)[0]


def test_the_loss_of_mixed_images_is_timms():
    module, kinds = classifier(**PUBLISHED), set()
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"}
    peer = Mixup(**options, label_smoothing=0.1, num_classes=10)
    for seed in range(8):
        np.random.seed(seed)
        mixed, target = peer(module.pixels(batch()["image"]).clone(), batch()["label"])
        expected = SoftTargetCrossEntropy()(module(mixed), target)
        np.random.seed(seed)
        torch.testing.assert_close(loss_of(module), expected)
        whole = module.pixels(batch()["image"])
        kinds.add("cutmix" if ((mixed == whole) | (mixed == whole.flip(0))).all() else "mixup")
    assert kinds == {"mixup", "cutmix"}


def test_the_loss_with_label_smoothing_is_timms_in_training_and_plain_in_validation():
    module = classifier(label_smoothing=0.1)
    logits, labels = module(batch()["image"]), batch()["label"]
    torch.testing.assert_close(loss_of(module), LabelSmoothingCrossEntropy(0.1)(logits, labels))
    torch.testing.assert_close(loss_of(module, "val"), F.cross_entropy(logits, labels))
    torch.testing.assert_close(loss_of(classifier(**PUBLISHED), "val"), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("depth", [2, 12])
def test_drop_path_of_each_block_is_that_of_the_model_that_timm_builds(depth):
    shape = {"depth": depth, "width": 16, "heads": 2}
    sizes = {"depth": depth, "embed_dim": 16, "num_heads": 2, "img_size": 16, "patch_size": 4}
    peer = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.3, **sizes)
    module = classifier(shape=shape, drop_path=0.3)
    for ours, theirs, rate in zip(module.model.blocks, peer.blocks, np.linspace(0, 0.3, depth), strict=True):
        for branch in ("drop_path1", "drop_path2"):
            expected = getattr(getattr(theirs, branch), "drop_prob", 0.0)
            assert getattr(getattr(ours, branch), "drop_prob", 0.0) == pytest.approx(expected) == pytest.approx(rate)


def test_drop_path_acts_in_training_alone():
    module = classifier(drop_path=0.9)
    assert len({loss_of(module).item() for _ in range(8)}) > 1
    assert len({loss_of(module.eval()).item() for _ in range(8)}) == 1


def test_rates_by_layer_are_timms_at_the_depth_that_they_are_written_for():
    rates = {"layer_decay": 0.75, "layer_decay_depth": 2, "recipe": Recipe(weight_decay=0.3)}
    module = classifier(**rates)
    peer = param_groups_layer_decay(module.model, 0.3, module.model.no_weight_decay(), layer_decay=0.75)
    expected = {p: (group["lr_scale"], group["weight_decay"]) for group in peer for p in group["params"]}
    found = {p: (g["lr_scale"], g["weight_decay"]) for g in module.parameter_groups() for p in g["params"]}
    assert found.keys() == expected.keys() == set(module.parameters())
    for parameter, numbers in found.items():
        assert numbers == pytest.approx(expected[parameter])


@pytest.mark.parametrize("pool", ["avg", "token", "map"])
def test_fine_tuning_moves_every_weight_of_an_encoder_with_fixed_positions(tmp_path, pool):
    encoder = build_encoder(Shape(2, 32, 2), Patches.of(16, 4, 1))
    torch.save({"state_dict": encoder.state_dict(), "hyper_parameters": TINY}, tmp_path / "encoder.ckpt")
    tuned = Classifier(10, tmp_path / "encoder.ckpt", **TINY, pool=pool, recipe=Recipe(base_lr=0.1, warmup_epochs=0))
    before = {name: tensor.clone() for name, tensor in tuned.named_parameters()}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, enable_checkpointing=False, **quiet)
    trainer.fit(tuned, datamodule=Digits(image_size=16, batch_size=20))
    still = [name for name, tensor in tuned.named_parameters() if torch.equal(tensor, before[name])]
    assert not still


def test_the_head_starts_as_published():
    module = Classifier(1000, "scratch", **{**TINY, "shape": {"depth": 1, "width": 64, "heads": 2}})
    assert module.model.head.weight.std().item() == pytest.approx(2e-5, rel=0.02)
    assert not module.model.head.bias.any()


def test_a_module_comes_back_from_its_checkpoint_with_the_recipe_of_its_run(tmp_path):
    told = {
        **{"drop_path": 0.2, "layer_decay": 0.75, "layer_decay_depth": 24, "head_init_std": 0.01, "seed": 7},
        **{"mixup": 0.4, "cutmix": 0.6, "label_smoothing": 0.2, "pool": "map", "grad_checkpointing": True},
        **{"mean": [0.25], "std": [0.125], "layer_norm_eps": 1e-5},
        "recipe": Recipe(base_lr=0.1, min_lr=0.01, warmup_share=0.25, weight_decay=0.2, betas=(0.8, 0.9)),
    }
    module = classifier(**told)
    trainer = Trainer(accelerator="cpu", max_steps=0, logger=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "classifier.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "classifier.ckpt", weights_only=True)
    assert again.recipe == told["recipe"]
    assert (again.mixing.mixup_alpha, again.mixing.cutmix_alpha, again.mixing.label_smoothing) == (0.4, 0.6, 0.2)
    assert again.model.blocks[1].drop_path2.drop_prob == pytest.approx(0.2)
    assert again.model.grad_checkpointing
    assert again.seed == 7
    assert again.hparams == module.hparams
    scales = [[group["lr_scale"] for group in model.parameter_groups()] for model in (again, module)]
    assert scales[0] == scales[1]
    torch.testing.assert_close(again.eval()(batch()["image"]), module.eval()(batch()["image"]))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(again, datamodule=Digits(image_size=16, batch_size=20))  # its weights are what it starts from


def test_set_drop_path_says_what_a_rate_must_be():
    with pytest.raises(ValueError, match="drop_path must be at least 0 and below 1, got 1"):
        set_drop_path(build_encoder(Shape(1, 16, 2), Patches.of(8, 4)), 1)
