"""The callback logs the right numbers, at the right steps, and changes nothing in training."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from bamboo.analysis import SimilarityMonitor, State, capture, measures, profile
from bamboo.analysis.monitor import log_steps
from bamboo.errors import InputError
from bamboo.recipes import Recipe
from bamboo.shapes import Shape
from bamboo.vision.data import Digits
from bamboo.vision.pretraining import MAEPretraining

from .tiny import DEPTH, images, sentences, text, timm_vit


class Supervised(LightningModule):
    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = timm_vit(proj_drop_rate=drop)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.model(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class MaskedLanguage(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = text("Bert").config
        self.encoder = transformers.BertForMaskedLM(config)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.encoder(batch["input_ids"], batch["attention_mask"]).logits.square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def pretraining() -> MAEPretraining:
    sizes = {"shape": Shape(DEPTH, 32, 4), "decoder_shape": Shape(1, 16, 4), "image_size": 16, "patch_size": 4}
    return MAEPretraining(Recipe(warmup_share=0.5), in_chans=1, **sizes)


def train(module: LightningModule, data: Any, folder: Path, *callbacks: Any, **kwargs: Any) -> Trainer:
    options = {"max_steps": 6, "accelerator": "cpu", "logger": TensorBoardLogger(folder, version="x")}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(**{**options, **quiet, **kwargs}, callbacks=list(callbacks))
    trainer.fit(module, data)
    return trainer


def batches(count: int = 6) -> DataLoader[torch.Tensor]:
    return DataLoader([images(1, seed=i)[0] for i in range(2 * count)], batch_size=2)  # type: ignore[arg-type]


def within(monitor: SimilarityMonitor) -> list[list[float]]:
    return monitor.history["token_similarity"]


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(next(folder.rglob("events*")).parent))
    found.Reload()
    return found


def test_supervised_training_logs_curves_and_a_picture(tmp_path: Path):
    monitor = SimilarityMonitor(every_n_steps=2)
    train(Supervised(), batches(), tmp_path, monitor)
    found = events(tmp_path)
    assert [e.step for e in found.Scalars("similarity/layer_00")] == [0, 2, 4]
    assert {f"similarity/layer_{i:02d}" for i in range(DEPTH + 1)} <= set(found.Tags()["scalars"])
    picture = found.Images("similarity/layers_by_time")[-1]
    assert (picture.height, picture.width) == (8 * (DEPTH + 1), 8 * 3)
    assert {np.shape(looks) for looks in monitor.history.values()} == {(3, DEPTH + 1)}


def test_logged_values_are_those_of_the_state_before_the_step(tmp_path: Path):
    module, monitor = Supervised(), SimilarityMonitor(every_n_steps=100)
    module_before = copy.deepcopy(module.model)
    expected: list[float] = []
    with (
        torch.no_grad(),
        capture(module.model, lambda s: expected.append(float(measures.token_similarity(s.tokens[:, 1:]).mean()))),
    ):
        module.model(next(iter(batches())))
    train(module, batches(), tmp_path, monitor)
    np.testing.assert_allclose(within(monitor)[0], expected[: DEPTH + 1], rtol=1e-4)
    found, whole = events(tmp_path), profile(module_before, [next(iter(batches()))])
    for layer in range(DEPTH + 1):
        for name in ("between", "excess"):
            (event,) = found.Scalars(f"similarity_{name}/layer_{layer:02d}")
            assert event.value == pytest.approx(whole.curve(f"{name}_similarity").mean[layer], rel=1e-4)
            assert monitor.history[f"{name}_similarity"][0][layer] == pytest.approx(event.value, rel=1e-6)


def test_training_is_the_same_with_and_without_the_monitor(tmp_path: Path):
    weights = []
    for callbacks in ([], [SimilarityMonitor(every_n_steps=1)]):
        module = Supervised(drop=0.5)
        torch.manual_seed(1)
        train(module, batches(), tmp_path / str(len(callbacks)), *callbacks)
        weights.append([p.detach().clone() for p in module.parameters()])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_pretraining_is_watched_at_its_masked_length(tmp_path: Path):
    monitor = SimilarityMonitor(every_n_steps=3, layers=[0, -1])
    train(pretraining(), Digits(image_size=16, batch_size=8), tmp_path, monitor, accumulate_grad_batches=2)
    assert monitor.stack.path == "blocks"
    found = events(tmp_path)
    assert [e.step for e in found.Scalars(f"similarity/layer_{DEPTH:02d}")] == [0, 3]
    assert "similarity/layer_01" not in found.Tags()["scalars"]
    assert np.shape(within(monitor)) == (2, DEPTH + 1)


def test_masked_language_modelling_leaves_padding_and_special_tokens_out(tmp_path: Path):
    module, monitor = MaskedLanguage(), SimilarityMonitor(every_n_steps=1)
    batch = sentences()
    module.eval()
    expected: list[float] = []
    mask = batch["attention_mask"].bool()
    mask[:, 0] = False
    with (
        torch.no_grad(),
        capture(module, lambda s: expected.append(float(measures.token_similarity(s.tokens, mask).mean()))),
    ):
        module.encoder(batch["input_ids"], batch["attention_mask"])
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with pytest.raises(InputError, match="no special_tokens_mask"):
        train(module, DataLoader([batch], batch_size=None), tmp_path, SimilarityMonitor(1), max_steps=1)  # type: ignore[arg-type]
    batch["special_tokens_mask"] = torch.zeros_like(batch["input_ids"])
    batch["special_tokens_mask"][:, 0] = 1
    train(module, DataLoader([batch], batch_size=None), tmp_path, monitor, max_steps=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(within(monitor)[0], expected, rtol=1e-4)


def test_resumed_run_goes_on_with_its_picture():
    monitor = SimilarityMonitor()
    monitor.steps = [500]
    monitor.history = {
        "token_similarity": [[0.1, 0.5]],
        "between_similarity": [[0, 0.2]],
        "excess_similarity": [[1, 2]],
    }
    older = {"history": [[0.1, 0.5]], "steps": [500]}
    for state in (monitor.state_dict(), older, {"history": [[0.1, 0.5]], "last_step": 500}):
        other = SimilarityMonitor()
        other.load_state_dict(state)
        assert (within(other), other.steps) == ([[0.1, 0.5]], [500])
        expected = [[1, 2]] if state is not older and "steps" in state else [[np.nan] * 2]
        np.testing.assert_array_equal(other.history["excess_similarity"], expected)
        other.chosen = [0]
        other._log(Trainer(logger=False), 1000, {name: [0.2, 0.3] for name in other.history})
        assert {np.shape(looks) for looks in other.history.values()} == {(2, 2)}
    other.history["token_similarity"].pop()
    picture = other.picture()
    assert picture.shape == (16, 8, 3)
    assert picture[0, 0].sum() > picture[-1, 0].sum()  # the last layer is on top, and brighter
    other.history["token_similarity"] = [[0.1, 0.5]] * 5000
    assert other.picture().shape == (16, 8 * 200, 3)


@pytest.mark.parametrize(
    ("total", "points", "expected"),
    [
        (1000, 5, [0, 1, 10, 100, 1000]),
        (16, 6, [0, 1, 2, 4, 8, 16]),
        (3, 9, [0, 1, 2, 3]),
        (7, 2, [0, 7]),
        (7, 1, [0, 7]),
        (1, 8, [0, 1]),
        (math.inf, 3, [0, 1, 2, 3, 5, 8, 11, 17, 26, 38]),  # 1.5^k, rounded
        (-1, 3, [0, 1, 2, 3, 5, 8, 11, 17, 26, 38]),
    ],
)
def test_points_are_evenly_spaced_in_log_steps(total: float, points: int, expected: list[int]):
    assert log_steps(total, points)[: len(expected)] == expected
    assert len(log_steps(total, points)) == len(expected) or not 0 < total < math.inf


def test_a_run_that_time_ends_is_seen_after_its_last_step(tmp_path: Path):
    class Ending(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 7

    monitor, data = SimilarityMonitor(held_out=4, points=3), Digits(image_size=16, batch_size=8)
    train(pretraining(), data, tmp_path, monitor, Ending(), max_steps=-1, max_time="00:01:00:00")
    assert monitor.steps == [0, 1, 2, 3, 5, 7]


def test_held_out_samples_are_seen_whole_and_after_the_last_step(tmp_path: Path):
    module = pretraining()
    monitor, data = SimilarityMonitor(held_out=10, points=3, layers=[-1]), Digits(image_size=16, batch_size=8)
    train(module, data, tmp_path, monitor)
    assert monitor.steps == [0, 1, 6]
    batches = [module.pixels(batch["image"]) for batch in data.probe_loaders(10)[1]]
    expected = profile(module.mae.encoder, batches, ["token_similarity"], samples=10).curve().mean
    np.testing.assert_allclose(within(monitor)[-1], expected, rtol=1e-5)
    logged = events(tmp_path).Scalars(f"similarity/layer_{DEPTH:02d}")
    assert [(e.step, e.value) for e in logged][-1] == (6, pytest.approx(expected[-1], rel=1e-5))


def test_hooks_go_away_when_training_fails(tmp_path: Path):
    class Failing(Supervised):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("broken")

    module = Failing()
    with pytest.raises(RuntimeError, match="broken"):
        train(module, batches(), tmp_path, SimilarityMonitor(every_n_steps=1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_wrong_settings_are_refused_before_the_first_step(tmp_path: Path):
    with pytest.raises(InputError, match="must be positive"):
        SimilarityMonitor(every_n_steps=0)
    with pytest.raises(InputError, match="layer 9 of SimilarityMonitor does not exist"):
        train(Supervised(), batches(), tmp_path, SimilarityMonitor(layers=[9]))
    with pytest.raises(InputError, match=r"did you mean 'model\.blocks'"):
        train(Supervised(), batches(), tmp_path, SimilarityMonitor(blocks="blocks"))


def test_two_processes_log_what_all_their_samples_have(tmp_path: Path):
    module, logger = Supervised(), CSVLogger(tmp_path, version="x")
    expected: list[float] = []
    data = torch.cat(list(batches(2)))  # each process gets two of these four

    def reducer(state: State) -> None:
        expected.append(float(measures.token_similarity(state.tokens[:, 1:]).mean()))

    with torch.no_grad(), capture(module.model, reducer):
        module.model(data)
    whole = profile(module.model, [data])
    train(module, batches(2), tmp_path, SimilarityMonitor(), strategy="ddp_fork", devices=2, max_steps=1, logger=logger)
    lines = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    logged = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    for layer in range(DEPTH + 1):
        assert float(logged[f"similarity/layer_{layer:02d}"]) == pytest.approx(expected[layer], rel=1e-4)
        between = whole.curve("between_similarity").mean[layer]
        assert float(logged[f"similarity_between/layer_{layer:02d}"]) == pytest.approx(between, rel=1e-4)
