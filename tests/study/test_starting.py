"""Studies of masked training that starts from weights."""

import json
from copy import deepcopy

import torch

from bamboo.checkpoints import load_mae
from bamboo.vision.pretraining import MAEPretraining

from .tiny import DECODER, MAE, SHAPES, run_here, tiny


def test_ways_to_stack_are_an_axis(tmp_path):
    shape = {**SHAPES[0], "depth": 1}
    module = MAEPretraining(shape=shape, image_size=16, patch_size=4, in_chans=1, decoder_shape=DECODER)
    source = tmp_path / "source.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, source)
    objective = {key: value for key, value in deepcopy(MAE).items() if key != "then"}
    objective["set"]["model"]["init_args"]["init_from"] = str(source)
    axes = {"model.init_args.stack": ["identity", "repeat"]}
    study = tiny(tmp_path, shapes=SHAPES[:1], objectives={"mae": objective}, axes=axes)
    out = run_here(study, tmp_path / "out")
    x, noise = torch.randn(2, 1, 16, 16), torch.rand(2, 16)
    losses = {}
    for cell in study.cells():
        (_, stack), *_ = cell.axes
        folder = out / "cells" / cell.name
        assert json.loads((folder / "result.json").read_text())
        losses[stack] = load_mae(folder / "train" / "start.ckpt")(x, noise).loss
    assert torch.equal(losses["identity"], load_mae(source)(x, noise).loss)
    assert not torch.equal(losses["repeat"], losses["identity"])
