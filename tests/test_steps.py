"""What a training step does besides its maths: it waits for no device, compiles once, and stops at bad numbers."""

import csv
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from bamboo.analysis.monitor import SimilarityMonitor
from bamboo.callbacks import NonFiniteGuard, Throughput
from bamboo.compiling import compile_in_training
from bamboo.errors import Diverged, InputError
from bamboo.finetune.classifier import Classifier
from bamboo.finetune.knn import NeighbourProbe
from bamboo.finetune.online_probe import LinearProbe
from bamboo.optimizers import build_optimizer
from bamboo.recipes import Recipe
from bamboo.shapes import Shape
from bamboo.vision.data import Digits
from bamboo.vision.heads import set_drop_path
from bamboo.vision.pretraining import MAEPretraining

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
SIZES = {"image_size": 32, "patch_size": 8, "in_chans": 1}
NO_WARM_UP = Recipe(base_lr=1e-2, warmup_epochs=0)


class Images(LightningDataModule):
    """Random images, the same in every batch; `spoil` maps the number of a batch to a value that it is filled with."""

    num_classes = 10

    def __init__(self, batches=6, spoil=(), batch_size=4):
        super().__init__()
        self.batch_size, self.classes = batch_size, [str(number) for number in range(10)]
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            {
                "image": torch.randn(batch_size, 1, 32, 32, generator=generator),
                "label": torch.arange(batch_size) % 10,
            }
            for _ in range(batches)
        ]
        for number, value in dict(spoil).items():
            self.batches[number]["image"][1, 0, 3, 3] = value

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def tiny_mae(**options):
    torch.manual_seed(0)
    options = {"shape": Shape(2, 32, 2), "decoder_shape": Shape(2, 32, 2), "recipe": NO_WARM_UP, **SIZES, **options}
    return MAEPretraining(**options)


def tiny_classifier(**options):
    torch.manual_seed(0)
    return Classifier(10, "scratch", shape=Shape(2, 32, 2), **{"recipe": NO_WARM_UP, **SIZES, **options})


def train(module, data, *callbacks, accelerator="cpu", **options):
    options = {"logger": False, "max_epochs": 1, **QUIET, **options}
    trainer = Trainer(accelerator=accelerator, callbacks=[*callbacks], **options)
    trainer.fit(module, datamodule=data)
    return trainer


# Compiled blocks


class Count(Callback):
    """Counts graphs after every training step and at the end."""

    def __init__(self, graphs):
        self.graphs, self.counts = graphs, []

    def on_train_batch_end(self, *_):
        self.counts.append(self.graphs())

    def on_train_end(self, *_):
        self.counts.append(self.graphs())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Blocks of the encoder, blocks of the decoder but the last, the last one, which gives masked tokens alone.
        ({"shape": Shape(3, 32, 2), "decoder_shape": Shape(3, 32, 2)}, 3),
        ({"grad_checkpointing": True}, 3),
        ({"decoder": "cross", "mix_layers": True}, 2),
    ],
)
def test_blocks_compile_once_whatever_runs_between_the_steps(graphs, options, expected):
    module, count = tiny_mae(**options), Count(graphs)
    compile_in_training([*module.mae.encoder.blocks, *module.mae.decoder.blocks], backend="eager")
    assert not any("_orig_mod" in name for name in module.state_dict())
    data = Digits(image_size=32, batch_size=64, num_workers=0)
    watch = [count, SimilarityMonitor(every_n_steps=3), NeighbourProbe(every_n_epochs=1, max_samples=100)]
    watch += [LinearProbe()]
    train(module, data, *watch, max_epochs=2, limit_train_batches=5, val_check_interval=2)
    assert len(count.counts) == 11
    assert count.counts[1:] == [(expected, 0)] * 10


def test_each_number_of_tokens_has_a_graph_of_fixed_shapes(graphs):
    module = tiny_mae()
    compile_in_training(module.mae.encoder.blocks, backend="eager")
    for tokens in (5, 6, 7):  # with shapes that become dynamic the second graph would serve the third number
        module.mae.encoder.blocks[0](torch.randn(2, tokens, 32))
    assert graphs() == (3, 0)


def test_a_compiled_step_is_the_plain_one(graphs):
    weights = []
    for compiled in (False, True):
        module = tiny_mae()
        if compiled:
            compile_in_training([*module.mae.encoder.blocks, *module.mae.decoder.blocks], backend="aot_eager")
            assert deepcopy(module.mae).encoder.blocks[0]._compiled_call_impl is None  # which would be of the original
        train(module, Images())
        weights.append(module.state_dict())
    assert graphs()[0] == 3
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


def test_blocks_of_every_drop_path_rate_share_their_graph(graphs):
    module = tiny_classifier(drop_path=0.5)
    module.model.blocks.append(deepcopy(module.model.blocks[1]))
    set_drop_path(module.model, 0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in module.model.blocks]
    assert rates == [0.0, 0.25, 0.5]
    compile_in_training(module.model.blocks, backend="eager")
    for _ in range(2):
        module(torch.randn(4, 1, 32, 32)).sum().backward()
    assert graphs() == (2, 0)  # without drop path and with it


def test_drop_path_leaves_out_whole_samples_at_its_rate_and_keeps_the_mean():
    module = tiny_classifier(drop_path=0.25)
    branch = module.model.blocks[1].drop_path1
    torch.manual_seed(0)
    values = branch(torch.ones(20000, 3, 2))
    assert (values == values[:, :1, :1]).all()
    assert values.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert values.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(branch.eval()(values), values)


# The host and the device


class MetaAccelerator(CPUAccelerator):
    """Lightning on a device without memory."""

    def setup_device(self, device):
        assert device.type == "meta"


class MetaStrategy(SingleDeviceStrategy):
    """The strategy for it, from which nothing can be brought back at the end."""

    def __init__(self):
        super().__init__(device="meta", accelerator=MetaAccelerator())

    def reduce(self, tensor, *_, **__):
        return torch.ones(())  # is asked once, before the start: whether there are data

    def teardown(self):
        pass


class Traffic(TorchDispatchMode):
    """Lists what would go between host and device: numbers that are read, tensors copied or used elsewhere."""

    def __init__(self):
        super().__init__()
        self.read, self.sent = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, devices = str(func), {a.device.type for a in args if isinstance(a, torch.Tensor)}
        where = out.device.type if isinstance(out, torch.Tensor) else "cpu"
        if len(devices) > 1 or ("copy" in name and len(devices | {where}) > 1):
            (self.sent if where == "meta" else self.read).append(name)
        if "_local_scalar_dense" in name and "meta" in devices:
            self.read.append(name)
        return out


class Watch(Callback):
    """Lists the traffic of every step, the transfer of its batch not counted."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, *_):
        self.mode = Traffic()
        self.mode.__enter__()

    def on_train_batch_end(self, *_):
        self.mode.__exit__(None, None, None)
        self.steps.append((self.mode.read, self.mode.sent))


def traffic(monkeypatch, module, data, *callbacks, **options):
    """What goes between host and device in every step of a run on a device without memory: (read, sent) of each."""
    monkeypatch.setattr(NonFiniteGuard, "_note", lambda *_: None)
    module.configure_optimizers = lambda: build_optimizer(module.parameter_groups(), module.recipe, fused=False)
    options |= {"strategy": MetaStrategy(), "max_time": "01:00:00:00", "log_every_n_steps": 100, "limit_val_batches": 0}
    watch = Watch()
    train(module, data, NonFiniteGuard(), Throughput(), *callbacks, watch, accelerator="auto", **options)
    return watch.steps


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (tiny_mae, {}),
        (tiny_mae, {"decoder": "cross", "mix_layers": True, "recipe": replace(NO_WARM_UP, optimizer="came")}),
        (tiny_classifier, {"drop_path": 0.5, "layer_decay": 0.75}),
        (tiny_classifier, {"freeze": True, "batch_norm": True, "recipe": replace(NO_WARM_UP, optimizer="lars")}),
    ],
)
def test_the_host_waits_for_the_device_at_no_step_that_is_not_logged(monkeypatch, build, options):
    """On a device without memory: a number that is read there is an error, and a copy in either direction is counted.

    What NCCL, a fused optimizer or the transfer of the batch does inside is not seen, nor are random generators, of
    which this device has none, nor the guard's copy of its flag, which nobody waits for in the same step.
    """
    module = build(**options)
    module.noise = lambda shape, *_: torch.empty(*shape, device="meta")
    probes = [LinearProbe()] if build is tiny_mae else []
    assert traffic(monkeypatch, module, Images(batches=3), *probes) == [([], [])] * 3


def test_what_is_logged_is_of_the_step_that_it_is_logged_for(tmp_path):
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append((outputs["loss"].item(), trainer.progress_bar_metrics.get("train/loss")))

    class Stop(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            trainer.should_stop = batch_idx == 4  # as the clock does

    logger = CSVLogger(tmp_path)
    train(tiny_mae(), Images(), Losses(), Stop(), logger=logger, log_every_n_steps=2, limit_val_batches=0)
    shown = [shown for _, shown in losses]
    assert shown == [None, *[pytest.approx(losses[number][0]) for number in (1, 1, 3, 4)]]
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file)}
    assert logged == {number: pytest.approx(losses[number][0]) for number in (1, 3, 4)}


def test_speed_is_logged_once_a_step_over_all_of_its_accumulated_batches():
    module, logged = tiny_mae(), []
    module.log_dict = lambda values, **_: logged.append(values)
    train(module, Images(), Throughput(), accumulate_grad_batches=3, log_every_n_steps=1, limit_val_batches=0)
    assert sum("speed/samples_per_s" in values for values in logged) == 2


@pytest.mark.parametrize("clip", [None, 1e9])
def test_the_gradient_norm_under_fp16_is_that_of_the_unscaled_gradients(clip):
    norms = []

    class Norms(Callback):
        def on_after_backward(self, trainer, module):
            gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            norms.append(gradients.norm().item() / 1024)

    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    options = {"plugins": [precision], "log_every_n_steps": 1, "max_steps": 2, "limit_val_batches": 0}
    trainer = train(tiny_mae(), Images(), Norms(), gradient_clip_val=clip, **options)
    assert trainer.callback_metrics["train/grad_norm"].item() == pytest.approx(norms[-1], rel=1e-3)


@pytest.mark.parametrize("build", [tiny_mae, tiny_classifier])
def test_bf16_true_trains_images_on_the_same_masks_and_counts_exactly(build):
    module = build()
    data = Digits(image_size=32, batch_size=64, num_workers=0)
    start = deepcopy(module.state_dict())
    trainer = train(module, data, NonFiniteGuard(), precision="bf16-true", limit_train_batches=2)
    weights = module.state_dict()
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    assert any(not torch.equal(weight, start[name].bfloat16()) for name, weight in weights.items())
    assert trainer.callback_metrics["val/samples"].item() == 360
    assert trainer.callback_metrics["val/loss"].dtype == torch.float32
    assert module.pixels.mean.dtype == torch.float32
    if build is tiny_mae:
        torch.set_default_dtype(torch.bfloat16)  # as Lightning does around a step
        try:
            noise = module.noise((4, 16), "train", 0, 0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(noise, module.noise((4, 16), "train", 0, 0))


# Numbers that are none


class State(Callback):
    """Keeps a copy of the weights as they are before each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_start(self, trainer, module, *_):
        self.weights.append(deepcopy(module.state_dict()))


def finite(module):
    return all(weight.isfinite().all() for weight in module.parameters())


def test_a_bad_batch_is_named_before_it_reaches_a_weight():
    module, state = tiny_mae(), State()
    line = r"^the loss is not finite at step 3: .* is the batch's 'image'; last good"
    with pytest.raises(InputError, match=line) as error:
        train(module, Images(spoil={3: float("nan")}), NonFiniteGuard(), state)
    assert not isinstance(error.value, Diverged)  # which says something of the model
    assert len(state.weights) == 4
    assert all(torch.equal(weight, state.weights[3][name]) for name, weight in module.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adamw", "came", "lars", "clipped"])
def test_a_device_leaves_the_bad_update_out_and_the_host_stops_in_the_next_batch(monkeypatch, optimizer):
    monkeypatch.setattr("bamboo.callbacks.reads_at_once", lambda device: False)
    module, state = tiny_mae(), State()
    module.configure_optimizers = lambda: build_optimizer(
        module.parameter_groups(),
        Recipe(
            base_lr=1e-2,
            optimizer="adamw" if optimizer == "clipped" else optimizer,
            betas=(0.9, 0.99),
        ),
        fused=optimizer != "clipped",
    )
    with pytest.raises(InputError, match="at step 3: the first tensor that is not is the batch's 'image'"):
        train(
            module,
            Images(spoil={3: float("inf")}),
            NonFiniteGuard(),
            state,
            gradient_clip_val=1.0 if optimizer == "clipped" else None,
        )
    assert len(state.weights) == 5
    assert finite(module)
    if optimizer == "adamw":
        assert all(torch.equal(weight, state.weights[3][name]) for name, weight in module.state_dict().items())


def test_a_device_is_asked_once_more_at_the_end_of_an_epoch_and_before_a_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr("bamboo.callbacks.reads_at_once", lambda device: False)
    with pytest.raises(InputError, match="not finite at step 5"):
        train(tiny_mae(), Images(spoil={5: float("nan")}), NonFiniteGuard())

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    with pytest.raises(InputError, match="not finite at step 2"):
        train(tiny_mae(), Images(spoil={2: float("nan")}), NonFiniteGuard(), Save())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt"]


def test_a_bad_weight_is_never_saved(tmp_path):
    module = tiny_mae()
    trainer = train(module, Images(), NonFiniteGuard(), max_steps=1)
    with torch.no_grad():
        module.mae.decoder.mask_token[0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"^the weight mae\.decoder\.mask_token is not finite after 1 steps; last good"):
        trainer.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def overflow(module):
    with torch.no_grad():
        module.mae.encoder.blocks[1].mlp.fc2.weight.fill_(3e38)
    return "the loss", "the output of mae.encoder.blocks.1.mlp.fc2"


def bad_weights(module):
    with torch.no_grad():
        module.mae.decoder.pred.weight[0, 0] = float("nan")
        module.mae.encoder.blocks[1].attn.qkv.bias[0] = float("nan")
        module.mae.encoder.blocks[1].norm2.bias[0] = float("nan")
    return "the loss", "the weight mae.encoder.blocks.1.attn.qkv.bias"


def bad_weights_registered_in_another_order(module):
    encoder = module.mae.encoder
    patch_embed = encoder.patch_embed
    del encoder.patch_embed
    encoder.patch_embed = patch_embed  # runs first, is listed last
    with torch.no_grad():
        encoder.blocks[1].attn.qkv.bias[0] = float("nan")
        encoder.patch_embed.proj.bias[0] = float("nan")
    return "the loss", "the weight mae.encoder.patch_embed.proj.bias"


def bad_gradient(module):
    compute, bias = module.compute, module.mae.encoder.blocks[1].mlp.fc1.bias

    def with_root(*args):  # 0 * sqrt(0), of which the derivative is 0 * infinity
        loss, logs = compute(*args)
        return loss + 0 * (bias * 0).sqrt().sum(), logs

    module.compute = with_root
    return "a gradient", "the gradient of mae.encoder.blocks.1.mlp.fc1.bias"


@pytest.mark.parametrize("spoil", [overflow, bad_weights, bad_weights_registered_in_another_order, bad_gradient])
def test_the_first_tensor_in_running_order_is_named(spoil):
    module = tiny_mae()
    what, culprit = spoil(module)
    with pytest.raises(Diverged) as error:
        train(module, Images(), NonFiniteGuard())
    line = f"{what} is not finite at step 0: the first tensor that is not is {culprit}; last good checkpoint: "
    assert str(error.value) == line + "none was saved"


def test_gradients_that_overflow_under_fp16_are_left_to_the_scaler():
    module, state = tiny_mae(), State()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    train(module, Images(), NonFiniteGuard(), state, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**54
    assert all(torch.equal(weight, state.weights[0][name]) for name, weight in module.state_dict().items())
    with pytest.raises(InputError, match="at step 1: the first tensor that is not is the batch's 'image'"):
        train(
            tiny_mae(),
            Images(spoil={1: float("nan")}),
            NonFiniteGuard(),
            plugins=[MixedPrecision("16-mixed", "cpu")],
        )
