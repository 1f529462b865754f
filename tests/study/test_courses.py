"""The course of a training is kept whole, through interruptions, and says whether it has settled."""

import contextlib
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from bamboo.analysis import profile
from bamboo.analysis.monitor import SimilarityMonitor
from bamboo.files import read_file
from bamboo.recipes import Recipe
from bamboo.saving import AtomicCheckpointIO, Checkpoints
from bamboo.shapes import Shape
from bamboo.study.courses import RECENT, course_of, excess_moved, read_course, write_course
from bamboo.study.plots import plot_course
from bamboo.study.recording import StudyRecord, read_record
from bamboo.study.results import Outcome, Results
from bamboo.vision.data import Digits
from bamboo.vision.pretraining import MAEPretraining
from tests.interruption import InterruptBefore, Interruption

from .tiny import tiny

SIZES = {"shape": Shape(2, 32, 2), "decoder_shape": Shape(1, 16, 1), "image_size": 16, "patch_size": 4, "in_chans": 1}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Watched(MAEPretraining):
    """Keeps the losses of its batches."""

    losses: list[float]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss


def fitted(folder, checkpoint=None, steps=None, **options):
    """A module after a run of 20 steps, or of as many as `steps` before it is cut off, and its last checkpoint."""
    torch.manual_seed(0)
    module = Watched(Recipe(warmup_share=0.5), **SIZES)
    module.losses = []
    looks, record = SimilarityMonitor(points=6, held_out=8), StudyRecord(str(folder))
    saving = Checkpoints(dirpath=folder, save_last=True, every_n_train_steps=1, enable_version_counter=False)
    callbacks = [looks, record, *([InterruptBefore(steps)] if steps else []), saving]
    trainer = Trainer(max_steps=20, callbacks=callbacks, plugins=[AtomicCheckpointIO()], **QUIET, **options)
    data = Digits(image_size=16, batch_size=16, num_workers=0)
    with pytest.raises(Interruption) if steps else contextlib.nullcontext():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module, data, read_file(folder / "last.ckpt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("whole"))


def test_losses_are_means_of_recent_batches_and_flops_those_of_the_steps(whole):
    module, data, checkpoint = whole
    course, *_ = read_record(checkpoint)
    assert course.steps == [0, 1, 2, 4, 9, 20]  # 20^(k/4), rounded
    for step, loss in zip(course.steps, course.loss, strict=True):
        seen = module.losses[: step + 1]
        assert loss == pytest.approx(np.mean(seen[-RECENT:]), rel=1e-5), step
    np.testing.assert_allclose(course.flops, [step * 16 * module.flops_per_sample() for step in course.steps])
    images = [module.pixels(batch["image"]) for batch in data.probe_loaders(8)[1]]
    end = profile(module.mae.encoder, images, list(course.similarity), samples=8)
    for name, values in course.similarity.items():
        np.testing.assert_allclose(values[-1], end.curve(name).mean, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 4, 18])
def test_a_resumed_run_has_the_course_of_an_uninterrupted_one(whole, tmp_path, steps):
    *_, cut = fitted(tmp_path, steps=steps)
    assert cut["global_step"] == steps
    *_, resumed = fitted(tmp_path, checkpoint=tmp_path / "last.ckpt")
    ends = [read_record(checkpoint)[0] for checkpoint in (whole[-1], resumed)]
    for path, course in zip((tmp_path / "whole.json", tmp_path / "resumed.json"), ends, strict=True):
        write_course(course, path)
    assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "resumed.json").read_bytes()


def test_loss_of_accumulated_batches_is_that_of_a_batch(tmp_path):
    module, _, checkpoint = fitted(tmp_path, accumulate_grad_batches=2)
    course, *_ = read_record(checkpoint)
    assert course.loss[0] == pytest.approx(module.losses[0], rel=1e-5)
    assert course.loss[-1] == pytest.approx(np.mean(module.losses[-RECENT:]), rel=1e-5)
    assert course.flops[-1] == 20 * 32 * module.flops_per_sample()


def course(steps, excess):
    layers = [[0.5, value] for value in excess]
    return course_of(steps, None, None, {"token_similarity": layers, "excess_similarity": layers})


def test_excess_moves_by_what_it_does_in_the_last_third_in_log_steps():
    steps = [0, 1, 10, 99, 100, 316, 1000]  # the last third begins at 100
    assert excess_moved(course(steps, [9, 8, 7, 6, 0.4, 0.1, 0.3])) == pytest.approx(0.3)
    assert excess_moved(course(steps, [0.5, 0.5, 0.5, 0.9, 0.2, 0.2, 0.2])) == 0
    assert math.isnan(excess_moved(course([0, 1, 8], [0.1, 0.2, 0.3])))  # one look is no movement
    assert excess_moved(course([0, 4, 8], [0.1, 0.2, 0.4])) == pytest.approx(0.2)  # 8^(2/3) is 4
    assert math.isnan(excess_moved(course(steps, [math.nan] * 7)))


def test_a_course_is_read_as_it_was_written(tmp_path):
    values = np.array([[0.25, 0.5], [0.125, math.nan]])
    made = course_of([0, 7], [1.5, math.nan], [0.0, 3.25e15], {"token_similarity": values})
    write_course(made, tmp_path / "training.json")
    found = read_course(tmp_path / "training.json")
    assert found.steps == made.steps
    np.testing.assert_array_equal(found.loss, made.loss)
    np.testing.assert_array_equal(found.flops, made.flops)
    np.testing.assert_array_equal(found.similarity["token_similarity"], values)
    assert np.isnan(found.similarity["excess_similarity"]).all()


def test_folders_of_earlier_versions_are_still_reported(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"similarity": {"0": [0.1, 0.2], "5": [0.3, 0.4]}}))
    found = read_course(tmp_path / "training.json")
    assert found.steps == [0, 5]
    np.testing.assert_array_equal(found.similarity["token_similarity"], [[0.1, 0.2], [0.3, 0.4]])
    assert np.isnan([*found.loss, *found.flops]).all()
    older = {"callbacks": {"SimilarityMonitor": {"steps": [0, 5], "history": [[0.1, 0.2], [0.3, 0.4]]}}}
    older["callbacks"]["StudyRecord"] = {"seconds": {1: 0.5}, "activation_bytes": 8}
    trained, activation_bytes, cost = read_record(older)
    np.testing.assert_array_equal(trained.similarity["token_similarity"], found.similarity["token_similarity"])
    assert (activation_bytes, cost) == (8, {"step_seconds": 0.5})


def drawn(tmp_path, against, measure="excess_similarity", older=()):
    """The figure of two seeds of two shapes, whose courses are written by hand; those of seeds in `older` are old."""
    outcomes = []
    for cell in tiny(tmp_path, seeds=2).cells():
        folder = tmp_path / cell.name
        folder.mkdir()
        layers = [[0.1, 0.2 + 0.2 * cell.seed], [0.3, 0.4 + 0.2 * cell.seed], [0.5, 0.6]]
        known = {} if cell.seed in older else {"excess_similarity": layers}
        losses = None if cell.seed in older else [3 - cell.seed, 2, 1]
        flops = None if cell.seed in older else [0, 1e9, 8e9]
        write_course(
            course_of([0, 1, 8], losses, flops, {"token_similarity": layers} | known), folder / "training.json"
        )
        outcomes.append(Outcome(cell, folder, "done"))
    return plot_course(Results(tiny(tmp_path, seeds=2), tuple(outcomes)), measure, against)


@pytest.mark.parametrize(("against", "x"), [("steps", [0, 1, 8]), ("loss", [2.5, 2, 1]), ("flops", [0, 1e9, 8e9])])
def test_similarity_of_the_last_block_is_drawn_against_steps_loss_and_flops(tmp_path, against, x):
    axis = drawn(tmp_path, against).axes[0]
    first, second, mean = axis.lines[:3]
    np.testing.assert_allclose(mean.get_xdata(), x)
    np.testing.assert_allclose(first.get_ydata(), [0.2, 0.4, 0.6])
    np.testing.assert_allclose(second.get_ydata(), [0.4, 0.6, 0.6])
    np.testing.assert_allclose(mean.get_ydata(), [0.3, 0.5, 0.6])
    assert axis.get_xscale() == ("linear" if against == "loss" else "symlog")
    assert axis.xaxis_inverted() == (against == "loss")


def test_cells_of_earlier_versions_are_drawn_as_far_as_they_were_measured(tmp_path):
    for against in ("steps", "loss", "flops"):
        folder = tmp_path / against
        folder.mkdir()
        drawn(folder, against, "token_similarity", older=[0]).savefig(folder / "figure.png")
