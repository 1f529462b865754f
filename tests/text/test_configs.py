"""Every shipped configuration for text is instantiated at its full size and runs a step at a reduced one."""

import pytest
import torch

from bamboo.shapes import SHAPES, find_shape
from bamboo.text.encoder import blocks_of
from tests.runs import CONFIGS, load
from tests.test_configs import parse
from tests.text.runs import fit

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("pretrain/text_*.yaml"))


def data_options(name, corpus):
    return [] if "quickstart" in name else [f"--data.init_args.root={corpus}"]


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_builds_the_model_that_it_names(name, corpus):
    cli = parse("--config", str(CONFIGS / name), *data_options(name, corpus), "--trainer.accelerator=cpu")
    assert cli.datamodule.length <= cli.model.model.config.max_position_embeddings
    assert len(blocks_of(cli.model.model)) == find_shape(cli.model.hparams["shape"]).depth
    budget = cli.config.trainer  # without one Lightning takes a thousand epochs
    assert budget.max_steps > 0 or (budget.max_epochs or 0) > 0 or budget.max_time


@pytest.mark.parametrize(("name", "shape"), [("text_bert", "vit-large"), ("text_one_day", "bamboo-large")])
def test_a_configuration_has_the_parameters_of_the_shape_that_it_is_given(name, shape, corpus):
    config = ["--config", str(CONFIGS / f"pretrain/{name}.yaml"), f"--data.init_args.root={corpus}"]
    model = parse(*config, "--model.init_args.shape", shape, "--trainer.accelerator=cpu").model
    assert sum(p.numel() for p in blocks_of(model.model).parameters()) == SHAPES[shape].parameters


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_runs_a_step_at_a_reduced_size(name, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.val_check_interval", "null"]
    small = ["--data.init_args.batch_size", "8", "--data.init_args.num_workers", "0"]
    plain = ["--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"]
    assert fit(*step, *small, *plain, *data_options(name, corpus), "--data.init_args.block_length=32", config=name) == 0
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert load(checkpoint)["global_step"] == 1
    with torch.no_grad():
        assert all(weight.isfinite().all() for weight in load(checkpoint)["state_dict"].values())
