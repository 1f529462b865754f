import math

import numpy as np
import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch.utils.flop_counter import FlopCounterMode

from bamboo.recipes import scaled_lr, scheduled_lr
from bamboo.seeds import derive_seed
from bamboo.shapes import Shape
from bamboo.vision.mae import build_mae
from bamboo.vision.pretraining import MAEPretraining
from tests.runs import QUARTER, fit, last, scalars

EVERY_EPOCH = ["--trainer.check_val_every_n_epoch", "1"]


def test_the_published_learning_rate_of_mae_at_its_published_batch():
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_the_schedule_is_that_of_the_reference_recipe():
    # He et al.'s per-iteration schedule, written in fractions of an epoch: 40 epochs of warm-up, then half a cosine.
    steps_per_epoch, epochs, warmup, peak = 10, 800, 40, 2.4e-3
    for step in (0, 1, 399, 400, 401, 4000, 7999):
        epoch = step / steps_per_epoch
        if epoch < warmup:
            expected = peak * epoch / warmup
        else:
            expected = peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        assert scheduled_lr(step, 400, 8000, peak) == pytest.approx(expected, abs=1e-12)


def test_vectors_and_frozen_positions_have_no_weight_decay():
    mae = build_mae("bamboo-tiny", 32, 8)
    free, decayed = param_groups_weight_decay(mae, 0.05)
    assert free["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.05
    assert all(parameter.ndim <= 1 for parameter in free["params"])
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    trained = {id(parameter) for group in (free, decayed) for parameter in group["params"]}
    assert id(mae.encoder.pos_embed) not in trained
    assert len(trained) == sum(parameter.requires_grad for parameter in mae.parameters())


def test_seeds_are_pure_functions_of_their_parts():
    assert derive_seed(0, "mask", 3) == derive_seed(0, "mask", 3) == 5_961_512_600_337_946_134
    seeds = {derive_seed(0, "mask", epoch, step) for epoch in range(10) for step in range(100)}
    assert len(seeds) == 1000
    assert derive_seed(np.int64(1), "view", 2) == derive_seed(1, "view", 2)
    assert len({derive_seed(*parts) for parts in [(1, 2), (12,), ("1", 2), (2, 1), ("1, 2",), (1, 2, 0)]}) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_a_run_logs_what_people_look_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "5", *QUARTER, *EVERY_EPOCH) == 0
    folder = last(tmp_path).parent.parent
    tags = ["train/loss", "train/lr", "train/grad_norm", "speed/samples_per_s", "speed/data_wait_ms"]
    for tag in tags:
        logged = scalars(folder, tag)
        assert list(logged) == [4, 9, 14, 19], tag  # 22 steps, counted from 0
        assert all(value >= 0 for value in logged.values()), tag
    for tag in ("val/loss", "probe/nearest_neighbours", "similarity/layer_02"):
        assert scalars(folder, tag), tag


def test_the_logged_gradient_norm_is_that_of_all_gradients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = ["--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"]
    assert fit("--trainer.max_steps", "1", "--trainer.log_every_n_steps", "1", *QUARTER, *save) == 0
    gradients = torch.load("gradients.pt", weights_only=True).values()
    expected = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert scalars(last(tmp_path).parent.parent, "train/grad_norm")[0] == pytest.approx(float(expected), rel=1e-4)


def test_flop_utilisation_is_logged_where_the_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bamboo.callbacks.get_available_flops", lambda device, dtype: 1e12)
    assert fit("--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "5", *QUARTER) == 0
    folder = last(tmp_path).parent.parent
    rates, shares = scalars(folder, "speed/samples_per_s"), scalars(folder, "speed/mfu")
    sizes = {"image_size": 32, "patch_size": 4, "in_chans": 1, "decoder_shape": Shape(1, 32, 2)}
    module = MAEPretraining(shape=Shape(2, 32, 2), **sizes)
    with torch.device("meta"), FlopCounterMode(display=False) as forward:
        build_mae(Shape(2, 32, 2), **sizes)(torch.empty(1, 1, 32, 32), torch.empty(1, 64))
    assert module.flops_per_sample() == 3 * forward.get_total_flops()  # a backward pass costs twice the forward one
    for step, rate in rates.items():
        assert shares[step] == pytest.approx(rate * module.flops_per_sample() / 1e12, rel=1e-4)
