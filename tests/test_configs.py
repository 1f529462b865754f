"""Every shipped pretraining configuration is instantiated at its full size and runs a step at a reduced one."""

import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torchvision import datasets

from bamboo.fit.compose import compose_arguments
from bamboo.fit.lightning import BambooCLI
from bamboo.shapes import SHAPES
from tests.conftest import write_images
from tests.runs import CONFIGS, fit, load

FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.glob("pretrain/[a-z]*.yaml")
    if not path.name.startswith("text_")  # those are tested in tests/text
)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, image_root):
    """One folder that looks like each of the data sets that the configurations read."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        (root / split).symlink_to(image_root / split)
        for name in ("n01440764", "n02102040"):
            write_images(root / "imagenette2-320" / split / name, 8, seed=len(split), ending="JPEG")
    batches = root / datasets.CIFAR10.base_folder
    batches.mkdir()
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        images = np.random.default_rng(0).integers(0, 255, (8, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": images, "labels": [0, 1] * 4}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": ["ant", "bee"]}))
    return root


def parse(*args):
    """The module and the data of a configuration, on the meta device; nothing runs."""
    words = compose_arguments(["fit", *args])
    with torch.device("meta"):
        cli = BambooCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            args=words[1:],
        )
    return cli


def root_option(name, root):
    return [] if "quickstart" in name else [f"--data.init_args.root={root}"]


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_builds_the_model_that_it_names(name, data_root):
    cli = parse("--config", str(CONFIGS / name), *root_option(name, data_root), "--trainer.accelerator=cpu")
    assert cli.model.mae.encoder.patch_embed.img_size == cli.datamodule.size


@pytest.mark.parametrize("name", ["vit-large", "bamboo-huge"])
def test_the_imagenet_configuration_builds_the_shape_that_it_is_given(name, data_root):
    config = ["--config", str(CONFIGS / "pretrain/imagenet.yaml"), f"--data.init_args.root={data_root}"]
    cli = parse(*config, "--model.init_args.shape", name, "--trainer.accelerator=cpu")
    encoder, shape = cli.model.mae.encoder, SHAPES[name]
    assert (len(encoder.blocks), encoder.embed_dim) == (shape.depth, shape.width)
    assert encoder.blocks[0].attn.num_heads == shape.heads


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_runs_a_step_at_a_reduced_size(name, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    size = ["--model.init_args.image_size", "32", "--model.init_args.patch_size", "8"]
    step = ["--trainer.max_epochs", "1", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]
    data = ["--data.init_args.batch_size", "8", "--data.init_args.num_workers", "0"]
    download = ["--data.init_args.download", "false"] if "cifar" in name or name.endswith("imagenette.yaml") else []
    plain = ["--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"]
    assert fit(*size, *step, *data, *download, *plain, *root_option(name, data_root), config=name) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert load(checkpoint)["global_step"] == 1
    assert list(tmp_path.rglob("reconstruction.png"))
