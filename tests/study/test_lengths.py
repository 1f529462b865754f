"""Causal models on texts longer than those that they were trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from torch.nn import functional as F

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.study.claims import claims
from bamboo.study.lengths import losses_by_length
from bamboo.study.report import write_report
from bamboo.study.results import Outcome, Results, read_results
from bamboo.text.encoder import build_config, build_model
from tests.runs import CONFIGS

from .tiny import rows, run_here, tiny, written

CLS = 2
LENGTHS = [16, 32, 64]


def model_of(positions):
    torch.manual_seed(0)
    options = {"vocab_size": 64, "max_positions": 18, "objective": "causal"}
    return build_model(build_config(Shape(2, 16, 2), "bert", positions=positions, **options)).eval()


def stream():
    return np.random.default_rng(0).integers(5, 64, 200).astype("uint16")


def test_the_same_tokens_are_scored_behind_more_and_more_of_what_precedes_them():
    model, tokens = model_of("alibi"), stream()
    losses = losses_by_length(model, tokens, CLS, LENGTHS, windows=3)
    for length in LENGTHS:
        expected = []
        for end in (64, 64 + 45, 64 + 91):  # three of the 137 places where a window of 64 can end
            window = torch.tensor([CLS, *tokens[end - length : end].tolist()])
            logits = model(window[None, :-1]).logits[0]
            expected.append(F.cross_entropy(logits[-16:], window[-16:]).item())
        assert losses[length] == pytest.approx(np.mean(expected), abs=1e-5)
    assert len({*losses.values()}) == 3


def test_a_model_is_asked_for_no_more_than_its_positions():
    assert [*losses_by_length(model_of("learned"), stream(), CLS, LENGTHS, windows=2)] == [16]


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(InputError, match="30 held-out tokens are less than a window of 64"):
        losses_by_length(model_of("none"), stream()[:30], CLS, LENGTHS, windows=2)


def test_that_it_is_too_short_shows_before_anything_runs(tmp_path, capsys):
    shapes, long = [{"depth": 1, "width": 32, "heads": 2}], {"lengths": [62, 10**6]}
    path = written(tmp_path, objectives=objectives(1), shapes=shapes, seeds=1, evaluation=long)
    assert main(["study", "--config", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "less than a window of 1000000" in capsys.readouterr().err
    assert not (tmp_path / "out" / "cells").exists()


def objectives(steps):
    """Causal models of different positions, as `study/lengths` has them."""
    few = {"trainer": {"max_steps": steps, "limit_val_batches": 1}}
    kinds = {"none": {}, "alibi": {}, "alibi_dape": {"positions": "alibi", "adaptive": "dape"}, "learned": {}}
    return {
        name: {
            "kind": "causal",
            "config": str(CONFIGS / "pretrain/text_quickstart.yaml"),
            "set": {"model": {"init_args": {"objective": "causal", "positions": name, **changes}}, **few},
        }
        for name, changes in kinds.items()
    }


def test_a_study_of_lengths_reports_losses_and_claims(tmp_path):
    small = {"samples": 8, "point_samples": 4, "points": 5, "lengths": [62, 124], "windows": 2}
    shapes = [{"depth": 1, "width": 32, "heads": 2}]
    study = tiny(tmp_path, objectives=objectives(2), shapes=shapes, seeds=1, evaluation=small)
    results = read_results(study, run_here(study, tmp_path / "out"))
    assert [(one.state, one.reason) for one in results.outcomes] == [("done", "")] * 4
    none, _, _, learned = results.done
    assert none.numbers["loss_longest"] == none.lengths[124]
    assert none.numbers["loss_beyond"] == pytest.approx(none.lengths[124] - none.lengths[62])
    assert [*learned.lengths] == [62]
    assert "loss_longest" not in learned.numbers
    write_report(results, tmp_path / "out")
    table = rows(tmp_path / "out" / "lengths.csv")
    assert [(row["cell"].partition("-")[0], row["length"]) for row in table][-2:] == [
        ("alibi_dape", "124"),
        ("learned", "62"),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Loss by length of text" in page
    assert (tmp_path / "out" / "lengths.png").stat().st_size > 10_000


@pytest.fixture
def plan(tmp_path):
    shapes = [{"depth": 1, "width": 32, "heads": 2}]
    return tiny(tmp_path, objectives=objectives(2), shapes=shapes, seeds=3, evaluation={"lengths": [8, 64]})


def invented(plan, **losses):
    """Results in which every seed of an objective has the numbers that a function of the seed gives."""
    outcomes = []
    for cell in plan.cells():
        numbers = {}
        if cell.objective in losses:
            longest = losses[cell.objective] + 0.001 * cell.seed
            numbers = {"loss_longest": longest, "loss_beyond": longest - 5}
        outcomes.append(Outcome(cell, Path(), "done", numbers))
    return Results(plan, tuple(outcomes))


def test_claims_ask_whether_positions_are_needed_and_whether_adapting_helps(plan):
    found = {claim.statement: claim for claim in claims(invented(plan, none=7.0, alibi=5.5, alibi_dape=5.2))}
    assert [*found] == [
        "without positions loss rises beyond the length of training",
        "dape extrapolates better than static positions of every kind",
    ]
    ((series, weights),) = (
        found["without positions loss rises beyond the length of training"].contrasts["at 1x32"].items()
    )
    assert (series.objective, weights) == ("none", {"1x32": 1.0})
    (contrast,) = found["dape extrapolates better than static positions of every kind"].contrasts.values()
    assert {series.objective: sum(weights.values()) for series, weights in contrast.items()} == {
        "alibi": 1.0,
        "alibi_dape": -1.0,
    }


def test_a_model_that_diverged_has_the_highest_loss(plan):
    from bamboo.study.evidence import table

    results = invented(plan, none=7.0, alibi=5.5, alibi_dape=5.2)
    gone = [
        replace(o, state="failed", numbers={}, diverged=True) if (o.cell.objective, o.cell.seed) == ("alibi", 1) else o
        for o in results.outcomes
    ]
    alibi = next(series for series in results.series if series.objective == "alibi")
    assert table(Results(plan, tuple(gone)), "loss_longest", alibi)["1x32"].tolist() == [5.5, 7.002, 5.502]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"lengths": [64]}}, "two or more"),
        ({"evaluation": {"lengths": [0, 64]}}, "all positive"),
        ({"objectives": {"masked": {**objectives(1)["none"], "kind": "masked", "set": {}}}}, "no objective is of kind"),
    ],
)
def test_lengths_that_cannot_be_are_refused(tmp_path, changes, said):
    shapes = [{"depth": 1, "width": 32, "heads": 2}]
    with pytest.raises(InputError, match=said):
        tiny(tmp_path, **{"objectives": objectives(1), "shapes": shapes, "evaluation": {"lengths": [8, 64]}, **changes})
