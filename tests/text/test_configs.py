"""Every shipped configuration for text is instantiated at its full size and runs a step at a reduced one."""

import pytest
import torch
import yaml

from bamboo.shapes import SHAPES, find_shape
from bamboo.text.encoder import blocks_of
from tests.runs import CONFIGS, load
from tests.test_configs import parse
from tests.text.runs import fit

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("pretrain/text_*.yaml"))
INIT = {name: yaml.safe_load((CONFIGS / name).read_text()).get("model", {}).get("init_args", {}) for name in FILES}
SHAPE_OF = {name: arguments.get("shape") for name, arguments in INIT.items()}
NAMED = [name for name, shape in SHAPE_OF.items() if isinstance(shape, str)]


def data_options(name, corpus):
    return [] if "quickstart" in name else [f"--data.init_args.root={corpus}"]


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_builds_the_model_that_it_names(name, corpus):
    cli = parse("--config", str(CONFIGS / name), *data_options(name, corpus), "--trainer.accelerator=cpu")
    assert cli.datamodule.block_length <= cli.model.model.config.max_position_embeddings
    assert len(blocks_of(cli.model.model)) == find_shape(cli.model.hparams["shape"]).depth
    budget = cli.config.trainer  # without one Lightning takes a thousand epochs
    assert budget.max_steps > 0 or (budget.max_epochs or 0) > 0 or budget.max_time


@pytest.mark.parametrize("name", NAMED)
def test_a_configuration_has_the_parameters_of_its_shape(name, corpus):
    model = parse("--config", str(CONFIGS / name), f"--data.init_args.root={corpus}", "--trainer.accelerator=cpu").model
    blocks = sum(p.numel() for p in blocks_of(model.model).parameters())
    assert blocks == SHAPES[SHAPE_OF[name]].parameters


@pytest.mark.parametrize(("one", "other"), [("bamboo_base", "vit_base"), ("bamboo_large", "vit_large")])
def test_partners_differ_in_the_shape_alone(one, other, corpus):
    runs = [
        parse("--config", str(CONFIGS / f"pretrain/text_{name}.yaml"), f"--data.init_args.root={corpus}")
        for name in (one, other)
    ]
    ours, theirs = (dict(run.model.hparams) for run in runs)
    assert {key for key in ours if ours[key] != theirs[key]} == {"shape"}
    assert runs[0].model.recipe == runs[1].model.recipe


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
