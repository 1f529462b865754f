"""Text is one more pair of objectives, measured in its own way."""

import math

import pytest

pytest.importorskip("transformers")

from bamboo.analysis import profile
from bamboo.analysis.model_sources import open_model
from bamboo.errors import InputError
from bamboo.study.arms import differences
from bamboo.study.changes import add_axes
from bamboo.study.folders import cell_folder
from bamboo.study.judging import judge
from bamboo.study.report import write_report
from bamboo.study.results import read_results
from bamboo.study.stages import run_config
from bamboo.text.glosses import GlossSubjects
from tests.runs import CONFIGS, load

from .tiny import run_here, tiny

FEW = {"trainer": {"max_steps": 2, "limit_val_batches": 3}}
CAUSAL = {"model": {"init_args": {"objective": "causal"}}}
OBJECTIVES = {
    "mlm": {"kind": "masked", "config": str(CONFIGS / "pretrain/text_quickstart.yaml"), "set": FEW},
    "supervised": {"kind": "supervised", "config": str(CONFIGS / "finetune/scratch_glosses.yaml"), "set": FEW},
}
NEXT = {"kind": "causal", "config": str(CONFIGS / "pretrain/text_quickstart.yaml"), "set": {**CAUSAL, **FEW}}


def test_a_third_objective_is_asked_what_the_masked_one_is(tmp_path):
    settings = {"objectives": {**OBJECTIVES, "next": NEXT}, "seeds": 1}
    shapes = [{"depth": 1, "width": 32, "heads": 1}, {"depth": 2, "width": 32, "heads": 1}]
    study = tiny(tmp_path, **settings, shapes=shapes, allow_unequal=True)
    results = read_results(study, run_here(study, tmp_path / "out"))
    assert [(one.state, one.reason) for one in results.outcomes] == [("done", "")] * 6
    numbers = next(one.numbers for one in results.done if one.cell.objective == "next")
    assert numbers["perplexity"] == pytest.approx(math.exp(numbers["loss"]), rel=1e-5)
    assert 0 <= numbers["next_accuracy"] < 1
    asked = {judgement.statement: judgement.quantity for judgement in judge(results)}
    assert "next smooths less than supervision at every depth" in asked
    assert asked["deep and narrow (2x32) beats the conventional shape (1x32) under next"] == "next tokens guessed right"
    write_report(results, tmp_path / "out")
    assert "next tokens guessed right" in (tmp_path / "out" / "report.html").read_text()
    rows = {row.key: row for row in differences(study)}
    assert rows["model.init_args.objective"].reason == "by the objective"


def test_positions_are_an_axis_of_both_objectives(tmp_path):
    study = add_axes(tiny(tmp_path, objectives=OBJECTIVES, seeds=1), ["positions", "alibi", "fire", "adaptive", "dape"])
    assert len(study.cells()) == 2 * 2 * 2
    for cell in study.cells():
        arguments = run_config(study, cell, tmp_path, "train")["model"]["init_args"]
        assert (arguments["positions"], arguments["adaptive"]) == (cell.axes[0][1], "dape")


@pytest.mark.parametrize(("kind", "changes"), [("masked", CAUSAL), ("causal", {})])
def test_the_kind_of_an_objective_is_what_its_model_is_trained_for(tmp_path, kind, changes):
    objective = {**NEXT, "kind": kind, "set": {**FEW, **changes}}
    with pytest.raises(InputError, match=f"is of kind {kind}, and its model.init_args.objective is"):
        tiny(tmp_path, objectives={"next": objective})


def test_a_study_of_text_measures_similarity_masked_words_and_accuracy(tmp_path):
    study = tiny(tmp_path, objectives=OBJECTIVES, shapes=[{"depth": 2, "width": 32, "heads": 1}], seeds=1)
    results = read_results(study, run_here(study, tmp_path / "out"))
    assert [(one.state, one.reason) for one in results.outcomes] == [("done", "")] * 2
    mlm, supervised = (one.numbers for one in results.done)
    for cell, numbers in zip(study.cells(), (mlm, supervised), strict=True):
        assert numbers["similarity"] != numbers["similarity_untrained"]
        assert numbers["activation_bytes"] > 1e5
        weights = load(cell_folder(tmp_path / "out", cell) / "train" / "last.ckpt")["state_dict"]
        assert any("head" in name for name in weights)
        expected = sum(tensor.numel() for name, tensor in weights.items() if "head" not in name)
        assert numbers["encoder_parameters"] == expected, [name for name in weights if "layer" not in name]
    held_out = GlossSubjects(vocab_size=2048).probe_loaders(8)[1]  # of many subjects, as the test of it says
    encoder = open_model(str(cell_folder(tmp_path / "out", study.cell(1)) / "train" / "last.ckpt")).model
    expected = profile(encoder, held_out, ["excess_similarity"]).curve("excess_similarity").mean[-1]
    assert supervised["excess"] == pytest.approx(expected, abs=1e-6)
    assert 0 <= mlm["masked_accuracy"] < 1 < mlm["loss"]
    assert 0 < mlm["most_frequent_token"] < 1
    (judgement,) = judge(results)  # there is one depth
    assert judgement.verdict == "not settled"  # of so few steps it is not known
    write_report(results, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "hidden tokens guessed right" in page
    assert "Reconstructions" not in page
