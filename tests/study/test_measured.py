"""What a study says of its cells is what they are: beside naive definitions, timm and `bamboo.analysis.profile`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.preprocessing import normalize

from bamboo.analysis import profile
from bamboo.analysis.model_sources import open_model
from bamboo.analysis.profiles import Comparison
from bamboo.checkpoints import load_classifier, load_encoder, pixel_scale
from bamboo.shapes import Patches, Shape, encoder_flops
from bamboo.study.folders import load_stored
from bamboo.study.plots import plot_pairs
from bamboo.study.report import notes
from bamboo.study.results import FINETUNED, VISIBLE, VISIBLE_UNTRAINED, WHOLE, read_results
from bamboo.study.vision import mask_ratio
from bamboo.vision.data import Digits
from tests.runs import load

from .tiny import MAE, SHAPES, SUPERVISED, rows, run_here, tiny


def naive_excess(tokens):
    """Excess similarity of tokens (samples, n, width), from the cosines of all pairs."""
    samples, n, width = tokens.shape
    unit = normalize(tokens.reshape(-1, width).double().numpy())
    cosines = (unit @ unit.T).reshape(samples, n, samples, n)
    within = np.mean([cosines[b, :, b][~np.eye(n, dtype=bool)] for b in range(samples)])
    between = np.mean([cosines[b, :, c] for b in range(samples) for c in range(samples) if b != c])
    return (within - between) / (1 - between)


@pytest.mark.parametrize("name", ["mae-2x64-seed0", "supervised-8x32-seed0"])
def test_excess_is_that_of_the_layers_and_checkpoints_that_it_says(out, name):
    folder = out / "cells" / name
    numbers = json.loads((folder / "result.json").read_text())["numbers"]
    images = next(iter(Digits(image_size=16).probe_loaders(8)[1]))["image"]

    def states(checkpoint):
        """The stream before and after the last block, and after the norm, by timm's own way to ask for them."""
        encoder = load_encoder(folder / checkpoint)[0]
        with torch.no_grad():
            scaled = pixel_scale(folder / checkpoint)(images)
            stream = encoder.forward_intermediates(scaled, indices=2, output_fmt="NLC", intermediates_only=True)
            return *stream, encoder.forward_features(scaled)[:, encoder.num_prefix_tokens :]

    before, last, normed = map(naive_excess, states("train/last.ckpt"))
    expected = {"excess_before_last": before, "excess": last, "excess_normed": normed}
    expected["excess_untrained"] = naive_excess(states("train/start.ckpt")[1])
    if "mae" in name:
        expected["excess_finetuned"] = naive_excess(states("then/last.ckpt")[1])
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 6) for value in expected.values()}) == len(expected)


def test_excess_of_the_visible_share_is_what_bamboo_profile_gives_at_the_mask_ratio_of_the_masked_objective(
    out, tmp_path
):
    cell, held_out = out / "cells" / "supervised-8x32-seed0", Digits(image_size=16).probe_loaders(8)[1]
    numbers = json.loads((cell / "result.json").read_text())["numbers"]
    for name, state in (("excess_visible", "last"), ("excess_visible_untrained", "start")):
        model = open_model(str(cell / "train" / f"{state}.ckpt")).model
        measured = profile(model, held_out, ["excess_similarity"], mask_ratio=0.75)
        assert numbers[name] == pytest.approx(measured.curve("excess_similarity").mean[-1], abs=1e-6)
    assert numbers["excess_visible"] != numbers["excess"]
    saved = {one.label: one.settings["mask_ratio"] for one in Comparison.load(cell / "profile").profiles}
    assert {label for label, ratio in saved.items() if ratio} == {VISIBLE, VISIBLE_UNTRAINED}


def test_the_visible_share_is_that_of_masked_training_of_the_cell_or_else_of_the_study(tmp_path):
    half = {**MAE, "set": {"model": {"init_args": {"mask_ratio": 0.5}}}}
    for objectives, ratio in (({"mae": MAE, "half": half}, 0.75), ({"half": half}, 0.5), ({}, 0.75)):
        study = tiny(tmp_path, objectives={"supervised": SUPERVISED, **objectives})
        configs = {name: objective.config for name, objective in study.objectives.items()}
        assert mask_ratio(study, "supervised", configs["supervised"]) == ratio
        if "half" in objectives:
            assert mask_ratio(study, "half", configs["half"]) == 0.5


def test_where_the_norm_comes_after_pooling_nothing_is_measured_after_it(out):
    pooled = out / "cells" / "mae-2x64-seed0" / "then" / "last.ckpt"
    assert load(pooled)["hyper_parameters"]["pool"] == "avg"
    profiles = {one.label: one for one in Comparison.load(pooled.parents[1] / "profile").profiles}
    assert not profiles[FINETUNED].has("excess_similarity", "norm")
    assert profiles[WHOLE].has("excess_similarity", "norm")


def test_probes_of_every_layer_are_kept_and_the_narrowest_shape_is_left_as_it_is(out):
    for row in rows(out / "cells.csv"):
        probes = json.loads((out / "cells" / row["cell"] / "layers.json").read_text())
        assert {len(layers) for layers in probes.values()} == {int(row["depth"]) + 1}
        assert probes["linear_probe"][int(row["linear_probe_layer"])] == float(row["linear_probe"])
        assert probes["linear_probe"][-1] == float(row["linear_probe_last"])
        assert float(row["linear_probe_projected"]) in probes["linear_probe_projected"]
        assert (probes["linear_probe_projected"] == probes["linear_probe"]) == (row["width"] == "32")
        assert row["projected_width"] == "32"


def test_a_narrower_shape_that_came_later_is_noted_for_probes_at_equal_width_do_not_compare(out):
    results = read_results(load_stored(out), out)
    assert not any("equal width" in line for line in notes(results))
    wider = replace(results.done[0], numbers={**results.done[0].numbers, "projected_width": 64})
    mixed = notes(replace(results, outcomes=(wider, *results.outcomes[1:])))
    assert any("probes at equal width are of widths 32 and 64" in line for line in mixed)


def test_parameters_are_counted_whole_in_the_encoder_and_in_the_blocks(out):
    for row in rows(out / "cells.csv"):
        weights = load(out / "cells" / row["cell"] / "train" / "last.ckpt")["state_dict"]
        assert float(row["parameters"]) == sum(tensor.numel() for tensor in weights.values())
        blocks = [tensor for name, tensor in weights.items() if ".blocks." in name and "decoder" not in name]
        assert int(row["block_parameters"]) == sum(tensor.numel() for tensor in blocks)


def test_flops_of_a_stage_are_those_of_its_steps(out):
    folder = out / "cells" / "mae-2x64-seed0"
    cost = json.loads((folder / "result.json").read_text())["cost"]
    assert cost["flops_train"] == json.loads((folder / "training.json").read_text())["flops"][-1]
    assert cost["flops_then"] == 2 * 100 * 3 * encoder_flops(Shape(2, 64, 2), Patches.of(16, 4, 1))
    page = (out / "report.html").read_text()
    assert f"{cost['flops_then']:.3g}" in page


def test_accuracy_is_that_on_what_is_held_out_of_the_data_that_the_classifier_is_trained_on(tmp_path):
    then = {**MAE["then"], "set": {**MAE["then"]["set"], "data": {"init_args": {"seed": 7}}}}
    study = tiny(tmp_path, objectives={"mae": {**MAE, "then": then}}, shapes=SHAPES[:1])
    (done,) = read_results(study, run_here(study, tmp_path / "out")).done
    network, _, scale = load_classifier(done.folder / "then" / "last.ckpt")
    right = []
    for batch in Digits(image_size=16, seed=7).val_dataloader():
        with torch.no_grad():
            right += (network(scale(batch["image"])).argmax(1) == batch["label"]).tolist()
    assert done.numbers["accuracy"] == np.mean(right)


def test_scores_are_drawn_against_smoothing_a_dot_for_each_cell(out):
    results = read_results(load_stored(out), out)
    drawn = plot_pairs(results, "excess", ["accuracy"]).axes[0].collections
    assert len(drawn) == len(results.series) == 2
    for dots, series in zip(drawn, results.series, strict=True):
        cells = [outcome.numbers for outcome in results.of(series)]
        assert dots.get_offsets().tolist() == [[cell["excess"], cell["accuracy"]] for cell in cells]
        assert dots.get_sizes()[1] > dots.get_sizes()[0]  # of the deeper shape
