"""A fine-tuned model leaves for timm and for Hugging Face with equal logits, and comes back."""

from pathlib import Path

import pytest
import timm
import torch
from lightning import Trainer
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.utils import accuracy
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    ViTForImageClassification,
)

from bamboo.checkpoints import export, load_classifier, load_encoder
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.finetune.ema import EMA
from bamboo.recipes import Recipe
from bamboo.vision.data import ImageFolder
from tests.finetune.folders import NAMES, write_classes

SIZES = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_classes(folder / "train", 0, 100)
    write_classes(folder / "val", 300, 200)
    return folder


def train(root: Path, out: Path, callbacks: tuple = (), **kwargs) -> tuple[Path, Classifier]:
    """A checkpoint of two steps from random weights, and the module, in which an average has taken their place."""
    torch.manual_seed(0)
    module = Classifier(10, "scratch", **{**SIZES, "head_init_std": 0.1, "recipe": Recipe(warmup_share=0.5), **kwargs})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    short = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0, "default_root_dir": out}
    trainer = Trainer(accelerator="cpu", callbacks=[*callbacks], **short, **quiet)
    trainer.fit(module, datamodule=ImageFolder(str(root), image_size=16, batch_size=50))
    return Path(trainer.checkpoint_callback.best_model_path), module.eval()


def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    out = model.eval()(images())
    return out if isinstance(out, torch.Tensor) else out.logits


def create(folder: Path) -> torch.nn.Module:
    """What timm builds of an exported folder."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


@pytest.mark.parametrize("pool", ["avg", "token", "map"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_head_leaves_for_timm_and_comes_back(root, tmp_path, pool, batch_norm):
    checkpoint, module = train(root, tmp_path, pool=pool, batch_norm=batch_norm, freeze=batch_norm)
    folder = tmp_path / "timm"
    export(checkpoint, "timm", folder)
    expected = logits(module)
    torch.testing.assert_close(logits(create(folder)), expected, rtol=1e-4, atol=1e-5)
    wrapped = AutoModelForImageClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-4, atol=1e-5)
    assert [wrapped.config.id2label[i] for i in range(10)] == list(NAMES)
    for source in (checkpoint, folder, folder / "model.safetensors"):
        model, head, scale = load_classifier(source)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
        assert (head.pool, head.classes) == (pool, NAMES)
        assert torch.allclose(scale.mean, module.pixels.mean, atol=1e-3)
    encoder, report = load_encoder(folder)
    assert torch.equal(encoder.blocks[1].mlp.fc1.weight, module.model.blocks[1].mlp.fc1.weight)
    assert all("head" in reason or "pooling" in reason for reason in report.unused.values())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_model_that_reads_the_class_token_is_a_vit_of_transformers(root, tmp_path, batch_norm):
    checkpoint, module = train(root, tmp_path, pool="token", batch_norm=batch_norm)
    export(checkpoint, "hf", tmp_path / "hf")
    theirs = ViTForImageClassification.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(logits(theirs), logits(module), rtol=1e-4, atol=1e-5)
    assert [theirs.config.id2label[i] for i in range(10)] == list(NAMES)
    model, head, _ = load_classifier(tmp_path / "hf")
    torch.testing.assert_close(logits(model), logits(module), rtol=1e-4, atol=1e-5)
    assert head.classes == NAMES
    theirs.save_pretrained(tmp_path / "again")  # written by transformers itself
    (tmp_path / "again/preprocessor_config.json").write_text((tmp_path / "hf/preprocessor_config.json").read_text())
    torch.testing.assert_close(logits(load_classifier(tmp_path / "again")[0]), logits(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_what_a_vit_of_transformers_cannot_pool_reaches_it_in_timms_layout(root, tmp_path, pool):
    checkpoint, module = train(root, tmp_path, pool=pool)
    export(checkpoint, "hf", tmp_path / "hf")
    wrapped = AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    assert type(wrapped).__name__ == "TimmWrapperForImageClassification"
    torch.testing.assert_close(logits(wrapped), logits(module), rtol=1e-4, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert processor.data_config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert tuple(processor.data_config["input_size"]) == (3, 16, 16)


def test_an_export_as_beit_of_an_earlier_version_still_loads(tmp_path):
    """A BEiT that has absolute positions and no layer scale computes what a ViT with pooled patches does."""
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "num_labels": 10}
    beit = BeitForImageClassification(BeitConfig(**sizes, intermediate_size=128, **options))
    with torch.no_grad():
        for parameter in beit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    beit.save_pretrained(tmp_path)
    model, head, _ = load_classifier(tmp_path)
    torch.testing.assert_close(logits(model), logits(beit), rtol=1e-4, atol=1e-5)
    assert head.pool == "avg"
    encoder, _ = load_encoder(tmp_path)
    assert torch.equal(encoder.norm.weight, beit.beit.pooler.layernorm.weight)


def test_the_average_is_what_is_exported(root, tmp_path):
    checkpoint, module = train(root, tmp_path, (EMA(decay=0.9),))
    export(checkpoint, "timm", tmp_path / "timm")
    assert torch.equal(logits(create(tmp_path / "timm")), logits(module))
    current = torch.load(checkpoint, weights_only=True)["current_model_state"]
    assert not torch.equal(current["model.head.weight"], module.model.head.weight)


def test_what_a_format_cannot_say_is_one_line(root, tmp_path):
    checkpoint, _ = train(root, tmp_path, pool="map")
    with pytest.raises(InputError, match="is a classifier, which the reference"):
        export(checkpoint, "reference", tmp_path / "reference")
    export(load_encoder_only(checkpoint, tmp_path), "timm", tmp_path / "encoder")
    with pytest.raises(InputError, match="holds no classifier"):
        load_classifier(tmp_path / "encoder")


def load_encoder_only(checkpoint: Path, folder: Path) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    told = {k: v for k, v in content["hyper_parameters"].items() if k not in ("num_classes", "pool")}
    torch.save({"state_dict": content["state_dict"], "hyper_parameters": told}, folder / "encoder.ckpt")
    return folder / "encoder.ckpt"


def test_timms_own_evaluation_of_the_exported_model_gives_the_same_accuracy(root, tmp_path):
    torch.manual_seed(0)
    module = Classifier(10, "scratch", **SIZES, head_init_std=0.02, recipe=Recipe(base_lr=2e-2, warmup_epochs=1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=20, check_val_every_n_epoch=20, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, datamodule=ImageFolder(str(root), image_size=16, batch_size=50, crop_scale=0.9, flip=0))
    (ours,) = trainer.validate(module, datamodule=ImageFolder(str(root), image_size=16, batch_size=64), verbose=False)
    export(trainer.checkpoint_callback.best_model_path, "timm", tmp_path / "timm")
    model, right, count = create(tmp_path / "timm").eval(), 0.0, 0
    options = resolve_data_config(model=model)  # all that the exported config.json says of sizes, crop and pixels
    loader = create_loader(
        ImageDataset(str(root / "val")), batch_size=64, num_workers=0, use_prefetcher=False, **options
    )
    with torch.no_grad():
        for batch, labels in loader:
            right += accuracy(model(batch), labels)[0].item() / 100 * len(batch)
            count += len(batch)
    assert count == ours["val/samples"] == 200
    assert ours["val/top1"] > 0.15
    assert right / count == pytest.approx(ours["val/top1"], abs=1e-6)
