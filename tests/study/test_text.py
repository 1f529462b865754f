"""Text is one more pair of objectives, measured in its own way."""

import pytest

pytest.importorskip("transformers")

from bamboo.analysis import profile
from bamboo.analysis.model_sources import open_model
from bamboo.study.folders import cell_folder
from bamboo.study.judging import judge
from bamboo.study.report import write_report
from bamboo.study.results import read_results
from bamboo.text.glosses import GlossSubjects
from tests.runs import CONFIGS, load

from .tiny import run_here, tiny

FEW = {"trainer": {"max_steps": 2, "limit_val_batches": 3}}
OBJECTIVES = {
    "mlm": {"kind": "masked", "config": str(CONFIGS / "pretrain/text_quickstart.yaml"), "set": FEW},
    "supervised": {"kind": "supervised", "config": str(CONFIGS / "finetune/scratch_glosses.yaml"), "set": FEW},
}


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
