"""What a run logs reaches every logger, pictures and texts included, and a run is found again whatever its logger."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bamboo.loggers import log_text
from tests.loggers import StandIn
from tests.runs import QUARTER, fit, last, load, scalars

RUN = [*QUARTER, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]
RUN += ["--trainer.check_val_every_n_epoch", "1"]
LOGGERS = {
    "TensorBoardLogger": ["--trainer.logger.name", "x"],
    "CSVLogger": ["--trainer.logger.name", "x"],
    "tests.loggers.StandIn": ["--trainer.logger.name", "a run", "--trainer.logger.project", "x"],
}


def train(logger: str, *args: str) -> int:
    chosen = ["--trainer.logger", logger, "--trainer.logger.save_dir", "runs", *LOGGERS[logger]]
    return fit(*RUN, *chosen, *args)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run with every logger, resumed for one more epoch."""
    folders = {}
    for logger in LOGGERS:
        folders[logger] = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folders[logger])
            assert train(logger) == 0
            assert train(logger, "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    return folders


def of_tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "runs/x/version_0"), {"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_a_run_is_resumed_whatever_its_logger(runs: dict[str, Path]) -> None:
    places = {"TensorBoardLogger": "version_0", "CSVLogger": "version_0", "tests.loggers.StandIn": "run0"}
    for logger, folder in runs.items():
        (checkpoint,) = folder.glob("runs/x/*/checkpoints/last.ckpt")
        assert checkpoint.parent.parent.name == places[logger]
        assert load(checkpoint)["global_step"] == 33


def test_every_logger_gets_the_same_numbers_and_pictures(runs: dict[str, Path]) -> None:
    events = of_tensorboard(runs["TensorBoardLogger"])
    numbers = {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    kept = {name: dict(values) for name, values in StandIn.logged.items()}
    timed = ("time", "per_second", "wait", "ms", "utilisation")
    steady = {name for name in numbers if not any(part in name for part in timed) and name != "hp_metric"}
    assert {"train/loss", "val/loss", "similarity/layer_00"} <= steady
    for name in ("train/loss", "val/loss"):
        assert {step: pytest.approx(value, rel=1e-6) for step, value in kept[name].items()} == numbers[name]
    assert steady <= kept.keys()
    files = [runs["CSVLogger"] / "runs/x/version_0" / name for name in ("metrics_1.csv", "metrics.csv")]
    before, after = (pd.read_csv(file) for file in files)  # the interruption lies between them
    assert steady <= {*before} | {*after}
    losses = pd.concat([before, after]).set_index("step")["train/loss"].dropna()
    assert losses.to_dict() == pytest.approx(numbers["train/loss"], rel=1e-6)
    shown = {name: [e.step for e in events.Images(name)] for name in events.Tags()["images"]}
    assert shown.keys() == {"reconstruction", "similarity/layers_by_time"}
    for name, steps in shown.items():
        assert [step for step, _ in StandIn.logged[name]] == steps
        for step, (picture,) in StandIn.logged[name]:
            file = runs["CSVLogger"] / "runs/x/version_0/logged" / f"{name.replace('/', '_')}_{step}.png"
            with Image.open(file) as written:
                assert np.asarray(written).shape == picture.shape


def test_texts_are_logged_beside_the_table(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "x", 0), StandIn(save_dir=tmp_path)]
    trainer = Trainer(logger=loggers, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    log_text(trainer, "filled", ["a dog", "an animal"], 3)
    assert (tmp_path / "x/version_0/logged/filled_3.txt").read_text() == "a dog\nan animal\n"
    assert StandIn.logged["filled"] == [(3, [["a dog"], ["an animal"]])]


def test_without_a_logger_last_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.logger", "false", "--ckpt_path", "last") == 2
    assert "needs the logger of the run" in capsys.readouterr().err.splitlines()[-1]


def test_the_best_checkpoint_is_that_of_the_best_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    every = ["--checkpoint.every_n_train_steps", "11", "--checkpoint.keep_every_n_epochs", "1"]  # at the same steps
    assert fit(*RUN, *every, "--checkpoint.monitor", "val/loss") == 0
    folder = last(tmp_path).parent
    assert {path.name for path in folder.iterdir()} == {"epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt", "best.ckpt"}
    losses = scalars(folder.parent, "val/loss")
    assert load(folder / "best.ckpt")["global_step"] == min(losses, key=losses.__getitem__) + 1
    assert f"best: {folder.relative_to(tmp_path) / 'best.ckpt'}" in " ".join(capsys.readouterr().out.split())


def test_a_resumed_run_keeps_the_best_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitored = [*RUN, "--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max"]  # which the first epoch has
    assert fit(*monitored) == 0
    first = load(last(tmp_path).with_name("best.ckpt"))["global_step"]
    assert fit(*monitored, "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert load(last(tmp_path).with_name("best.ckpt"))["global_step"] == first


def test_a_metric_that_is_not_logged_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(*RUN, "--checkpoint.monitor", "val/los") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("bamboo: error: unknown checkpoint.monitor 'val/los': did you mean 'val/loss'")
