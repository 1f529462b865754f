"""The online probe is what a plain loop trains on the same features, and pretraining does not feel it."""

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bamboo.errors import InputError
from bamboo.finetune.online_probe import LinearProbe
from bamboo.recipes import Recipe
from bamboo.vision.data import Digits
from bamboo.vision.images import Arrays
from tests.interruption import InterruptBefore, Interruption
from tests.runs import same
from tests.test_steps import QUIET, tiny_mae


class Batches(LightningDataModule):
    """Random images in batches with given labels, which are dealt to the processes."""

    def __init__(self, labels, val=(), num_classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_classes, self.batch_size = num_classes, max(map(len, labels), default=0)
        self.train, self.val = (
            [
                {
                    "image": torch.randn(len(row), 1, 32, 32, generator=generator),
                    "label": torch.tensor(row, dtype=torch.int64),
                }
                for row in rows
            ]
            for rows in (labels, val)
        )

    def share(self, batches):
        return DataLoader(batches[self.trainer.global_rank :: self.trainer.world_size], batch_size=None)

    def train_dataloader(self):
        return self.share(self.train)

    def val_dataloader(self):
        return self.share(self.val)


LABELS = [[0, 1, 2, 0], [2, -1, 1, 1], [-1, -1, -1, -1], [0, 0, -1, 2], [1, 2, 2, 0], [0, 1, -1, -1]]
VAL = [[0, 1, -1], [], [2, 2]]


class Features(Callback):
    """Keeps the input of the decoder in every training step: normed tokens that the encoder gives."""

    def __init__(self):
        self.features = []

    def on_train_start(self, trainer, module):
        def keep(decoder, args):
            if module.training:
                self.features.append(args[0][-1].detach()[:, 1:].mean(dim=1))

        module.mae.decoder.register_forward_pre_hook(keep)


def train(module, data, *callbacks, **options):
    options = {"logger": False, "max_epochs": 1, "accelerator": "cpu", **QUIET, **options}
    trainer = Trainer(callbacks=[*callbacks], **options)
    trainer.fit(module, datamodule=data)
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"grad_checkpointing": True},
        {"decoder": "cross", "mix_layers": True},
    ],
)
def test_the_classifier_is_that_of_a_plain_loop_over_the_same_features(options):
    accumulated = {name: options.pop(name) for name in ("accumulate_grad_batches",) if name in options}
    probe, seen = LinearProbe(lr=1e-2), Features()
    train(tiny_mae(**options), Batches(LABELS), seen, probe, max_epochs=2, **accumulated)
    assert len(seen.features) == 12
    expected = plain_loop([[part] for part in seen.features], [[row] for row in 2 * LABELS])
    assert expected["1.weight"].abs().max() > 0.01
    assert_near(probe.head.state_dict(), expected)


def plain_loop(features, labels):
    """Batch norm and classifier after a step for each list of batches, one batch of each process."""
    linear, norms = nn.Linear(32, 3), [nn.BatchNorm1d(32, eps=1e-6, affine=False) for _ in features[0]]
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2)
    for parts, rows in zip(features, labels, strict=True):
        logits = linear(torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)]))
        truth = torch.tensor([label for row in rows for label in row])
        known = truth >= 0
        loss = F.cross_entropy(logits[known], truth[known]) if known.any() else 0 * logits.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {f"1.{name}": value for name, value in linear.state_dict().items()}
    for name in norms[0].state_dict():
        state[f"0.{name}"] = sum(norm.state_dict()[name] for norm in norms) / len(norms)
    return state


def assert_near(state, expected):
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, check_dtype=False)


class Save(Callback):
    """Saves what each process has at the end."""

    def __init__(self, folder, probe, seen):
        self.folder, self.probe, self.seen = folder, probe, seen

    def on_train_end(self, trainer, module):
        results = {"head": self.probe.head.state_dict(), "features": self.seen.features, "top1": self.probe.top1}
        torch.save(results, self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_hold_the_classifier_that_all_their_labels_train(tmp_path):
    probe, seen = LinearProbe(lr=1e-2), Features()
    options = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False, "max_epochs": 2}
    val = [[0, 1], [2, -1], [], [2, 0]]
    train(tiny_mae(), Batches(LABELS, val), seen, probe, Save(tmp_path, probe, seen), **options)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(one["head"], two["head"])
    assert one["top1"] == two["top1"]
    assert one["top1"] * 5 == pytest.approx(round(one["top1"] * 5))  # of five labels over both
    labels = [[LABELS[step], LABELS[step + 1]] for step in (0, 2, 4)]
    assert_near(one["head"], plain_loop([*zip(one["features"], two["features"], strict=True)], 2 * labels))


def run(*callbacks, **options):
    """Weights, optimizer and losses of a run with dropout's random stream in use."""
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append((outputs["loss"].item(), torch.rand(()).item()))

    module = tiny_mae()
    trainer = train(module, Batches(LABELS, VAL), *callbacks, Losses(), max_epochs=2, **options)
    return module.state_dict(), trainer.optimizers[0].state_dict(), losses, trainer.callback_metrics["val/loss"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_pretraining_is_the_same_bit_for_bit_with_and_without_it(precision):
    probe = LinearProbe()
    assert same(run(probe, precision=precision), run(precision=precision))
    assert {value.dtype for name, value in probe.head.state_dict().items() if "tracked" not in name} == {torch.float32}
    assert probe.top1 is not None


def test_no_hook_is_left_behind_and_other_passes_are_not_seen():
    class Other(Callback):
        """Runs the encoder between the pass and the end of the batch, as other callbacks may."""

        def on_after_backward(self, trainer, module):
            module.mae.encoder(torch.full((4, 1, 32, 32), 1e3))

    ours, theirs = LinearProbe(), LinearProbe()
    module = tiny_mae()
    train(module, Batches(LABELS), ours)
    train(tiny_mae(), Batches(LABELS), theirs, Other())
    assert same(ours.head.state_dict(), theirs.head.state_dict())
    with pytest.raises(Interruption):
        train(module, Batches(LABELS), LinearProbe(), InterruptBefore(2))
    assert not module.mae.encoder.norm._forward_hooks


def test_validation_counts_each_labelled_whole_image_once():
    probe, module, data = LinearProbe(lr=0.1), tiny_mae(), Batches(LABELS, VAL)
    trainer = train(module, data, probe, max_epochs=3)
    right = []
    module.eval()
    for batch in data.val:
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            if label >= 0:
                features = module.mae.encoder.forward_features(image[None])[0, 1:].mean(dim=0)
                state = probe.head.state_dict()
                normed = (features - state["0.running_mean"]) / (state["0.running_var"] + 1e-6).sqrt()
                right.append(int((state["1.weight"] @ normed + state["1.bias"]).argmax()) == label)
    assert len(right) == 4
    assert trainer.callback_metrics["probe/online_top1"].item() == probe.top1 == pytest.approx(sum(right) / 4)
    assert probe.summary() == {"online linear probe, top-1": f"{25 * sum(right)}.0 %"}


def test_views_of_one_image_are_samples_each():
    probe, rows = LinearProbe(), []
    step, probe._train = probe._train, lambda head, *of: (rows.append((of[0].shape, of[1].shape)), step(head, *of))
    train(tiny_mae(), Digits(image_size=32, batch_size=64, repeat=4), probe, limit_train_batches=2, limit_val_batches=0)
    assert rows == [((64, 32), (64,))] * 2


def test_what_is_logged_of_training_is_the_mean_since_the_last_log():
    rows, step = [], LinearProbe._train

    class Rows(LinearProbe):
        def _train(self, head, features, labels, processes):
            logits = head.train()(features).detach()
            rows.extend((row, label) for row, label in zip(logits, labels.tolist(), strict=True) if label >= 0)
            step(self, head, features, labels, processes)

    logged = []

    class Log(Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append(trainer.callback_metrics.get("probe/online_train_loss"))

    options = {"log_every_n_steps": 1, "accumulate_grad_batches": 3, "limit_train_batches": 6}
    trainer = train(tiny_mae(), Batches(LABELS), Rows(lr=0.1), Log(), **options)
    last = rows[7:]  # of the last three batches
    losses = torch.stack([-row.log_softmax(0)[label] for row, label in last])
    assert trainer.callback_metrics["probe/online_train_loss"].item() == pytest.approx(losses.mean().item(), rel=1e-5)
    right = sum(int(row.argmax()) == label for row, label in last) / len(last)
    assert trainer.callback_metrics["probe/online_train_top1"].item() == pytest.approx(right)
    assert [value is None for value in logged] == [True, True, False, False, False, False]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    def go(*callbacks, ckpt_path=None):
        probe = LinearProbe()
        trainer = Trainer(
            accelerator="cpu", callbacks=[probe, *callbacks], logger=False, max_epochs=2, log_every_n_steps=100, **QUIET
        )
        module = tiny_mae()
        data = Digits(image_size=32, batch_size=48, fraction=0.2, num_workers=0)
        with suppress(Interruption):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return probe.state_dict(), module.state_dict(), trainer.callback_metrics.get("probe/online_top1")

    class SaveBefore(InterruptBefore):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == self.step:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    whole = go()
    go(SaveBefore(7))
    assert whole[0]["sums"][2] == 2 * 5 * 48  # nothing has been logged yet
    assert same(go(ckpt_path=tmp_path / "saved.ckpt"), whole)


def test_a_resumed_run_goes_on_at_the_rate_that_is_configured():
    first, second = LinearProbe(lr=1e-3), LinearProbe(lr=1e-2)
    train(tiny_mae(), Batches(LABELS), first)
    second.load_state_dict(first.state_dict())
    train(tiny_mae(), Batches(LABELS), second)
    assert second.optimizer.param_groups[0]["lr"] == 1e-2
    assert second.optimizer.state[second.head[1].weight]["step"] == 12


def test_of_replayed_passes_it_says_that_it_sees_nothing(capsys, monkeypatch):
    module = tiny_mae()
    monkeypatch.setattr(type(module), "replays", True)
    monkeypatch.setattr(type(module), "_check_graphs", lambda self: None)
    train(module, Batches(LABELS), LinearProbe())
    assert "no online linear probe: passes that are replayed as a graph show no features\n" in capsys.readouterr().out


def test_in_batches_of_one_image_it_says_so_and_does_nothing(capsys):
    train(tiny_mae(), Batches([[0], [1]]), LinearProbe())
    assert "no online linear probe: batches of one image cannot be normalised\n" in capsys.readouterr().out


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match=r"^lr of LinearProbe must be positive, got 0$"):
        LinearProbe(lr=0)
    probe = LinearProbe()
    train(tiny_mae(), Batches(LABELS), probe)
    other = LinearProbe()
    other.load_state_dict(probe.state_dict())
    with pytest.raises(InputError, match=r"has \(classes, features\) \(3, 32\) and this run \(5, 32\): .*$"):
        train(tiny_mae(), Batches(LABELS, num_classes=5), other)
    trainer = SimpleNamespace(datamodule=Batches(LABELS))
    with pytest.raises(InputError, match="belongs to a masked autoencoder, not to SimpleNamespace"):
        LinearProbe().on_train_start(trainer, SimpleNamespace())


@pytest.mark.parametrize("labelled", [False, True])
def test_without_labels_it_says_so_once_and_does_nothing(labelled, capsys):
    """Also where labels are those of other images than the ones that are trained on, as of STL10."""

    class Unlabelled(Digits):
        def read_sources(self):
            sources = super().read_sources()
            self.others = sources.train
            images = Arrays(sources.train.images, np.full(len(sources.train), -1))
            return sources._replace(train=images)

        @property
        def labelled(self):
            return self.others if labelled else self.sources.train

    data, probe = Unlabelled(image_size=32, batch_size=512), LinearProbe()
    trainer = train(tiny_mae(), data, probe, max_epochs=2)
    said = capsys.readouterr().out.splitlines()
    assert sum("no online linear probe: the training images have no labels" in line for line in said) == 1
    assert not any("online" in name for name in trainer.callback_metrics)
    assert probe.state_dict() == probe.summary() == {}


def test_on_digits_it_is_far_above_chance_and_every_held_out_digit_counts():
    probe, counts = LinearProbe(lr=3e-2), []

    class Count(Callback):
        def on_validation_end(self, *_):
            counts.append(probe._counts[1].item())

    module = tiny_mae(image_size=16, patch_size=4, mask_ratio=0.5, recipe=Recipe(base_lr=1e-3, warmup_epochs=0))
    options = {"max_epochs": 4, "check_val_every_n_epoch": 4}
    train(module, Digits(image_size=16, batch_size=32), probe, Count(), **options)
    assert counts[-1] == 360
    assert probe.top1 > 0.3  # chance is 0.1
