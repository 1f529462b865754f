"""The Lightning module that trains by a recipe, whatever the task."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torchmetrics import Metric

from bamboo.clock import Clock, find_timer
from bamboo.compiling import Compile, Graphed, compile_in_training
from bamboo.errors import InputError
from bamboo.optimizers import build_optimizer, unscales
from bamboo.recipes import Recipe, accumulation, scaled_lr, scheduled_lr
from bamboo.seeds import derive_seed

OF_THE_OPTIMIZER = ("optimizer", "betas", "eps", "weight_decay", "layer_decay", "layer_decay_depth")
"""The options that the state of an optimizer holds, so that a resumed run cannot change them."""


def plain_arguments(arguments: Mapping[str, Any], further: str = "") -> dict[str, Any]:
    """All arguments of a constructor, its `locals()`, as plain values: what `load_from_checkpoint` builds it from.

    `further` is the name of its `**` arguments, which stand beside the others.
    """
    named = {name: value for name, value in arguments.items() if name not in ("self", "__class__", further)}
    named |= arguments.get(further, {})
    return {name: asdict(value) if is_dataclass(value) else value for name, value in named.items()}  # type: ignore[arg-type]


def is_logged(trainer: Trainer, steps: int) -> bool:
    """Whether Lightning hands to its loggers what is logged in the step that makes it `steps` in all."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (steps % every == 0 or trainer.should_stop)


class TrainingModule(LightningModule):
    """A LightningModule that trains by a `Recipe`, a mapping where it comes out of a checkpoint.

    A task adds `compute`, the maths of one step.
    """

    seed: int
    compile_blocks: Compile = False
    _graphed: Graphed | None = None

    def __init__(self, recipe: Recipe | Mapping[str, Any]) -> None:
        super().__init__()
        self.recipe = Recipe(**recipe) if isinstance(recipe, Mapping) else recipe

    def compute(self, batch: Any, batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what else is worth logging, for one batch in `train` or `val`."""
        raise NotImplementedError

    def compile_on_gpu(self, blocks: Iterable[nn.Module]) -> None:
        """Compile blocks in place where `compile_blocks` asks for it and there is a GPU."""
        if self.compile_blocks is True and self.trainer.strategy.root_device.type == "cuda":
            compile_in_training(blocks)

    @property
    def replays(self) -> bool:
        """Whether passes in training are replayed as CUDA graphs, in which hooks of modules are not called."""
        return self.compile_blocks == "graphs" and self.trainer.strategy.root_device.type == "cuda"

    def run(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """A function of tensors and the weights, which training on a GPU replays where `compile_blocks` is `graphs`."""
        if not (self.compile_blocks == "graphs" and self.training and torch.is_grad_enabled() and tensors[0].is_cuda):
            return function(*tensors)
        if self._graphed is None:
            self._graphed = Graphed(function, self)
        return self._graphed(*tensors)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one step. The host waits for the device at the steps that are logged alone.

        Lightning reads what the progress bar shows in every batch from then on, so that is kept on the CPU.
        """
        loss, logs = self.compute(batch, batch_idx, "train")
        if is_logged(self.trainer, self.trainer.global_step + 1):
            self.log("train/loss", loss.detach().cpu(), prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in logs.items()})
        return loss

    def configure_callbacks(self) -> list[Callback]:
        """A clock that all processes share, in place of the timer of `trainer.max_time`."""
        timer = find_timer(self.trainer)
        return [Clock.like(timer)] if timer else []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in two groups: with and without weight decay. A group may have an `lr_scale`."""
        groups: list[dict[str, Any]] = param_groups_weight_decay(self, self.recipe.weight_decay)
        return groups

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimizer over the groups of parameters."""
        # Fused AdamW unscales by itself, which clipping under mixed precision does not allow.
        fused = not (self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision))
        return build_optimizer(self.parameter_groups(), self.recipe, fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a step of the run consists of."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            checkpoint["batch"] = self.batch()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise `InputError` for the checkpoint of another model, or a resumed run with another optimizer."""
        current, saved = self.state_dict(), checkpoint["state_dict"]
        for name in dict.fromkeys([*current, *saved]):
            here, there = (list(state[name].shape) if name in state else "absent" for state in (current, saved))
            if here != there:
                raise InputError(f"the checkpoint is of another model: {name} is {there} in it and {here} here")
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._check_optimizer(checkpoint.get("hyper_parameters", {}))

    def _check_optimizer(self, saved: Mapping[str, Any]) -> None:
        """A resumed optimizer brings its own options, in the place of those that are configured now."""
        before, now = {**saved, **saved.get("recipe", {})}, {**self.hparams, **asdict(self.recipe)}
        for key in OF_THE_OPTIMIZER:
            if key in before and key in now and before[key] != now[key]:
                raise InputError(
                    f"the checkpoint was trained with {key} {before[key]}, and the configuration says {now[key]}: "
                    "a run goes on with its own optimizer; start a new one for another"
                )

    def on_fit_start(self) -> None:
        """Accumulate batches up to the effective batch of the recipe. Raises `InputError` where that cannot be."""
        if self.recipe.effective_batch:
            configured = self.trainer.accumulate_grad_batches
            self.trainer.accumulate_grad_batches = accumulation(
                self.recipe.effective_batch, self._batch_size(), self.trainer.world_size, configured
            )
        if self.replays:
            self._check_graphs()

    def _check_graphs(self) -> None:
        """Raise `InputError` for what a captured pass would get wrong."""
        in_the_way = {
            "several processes": self.trainer.world_size > 1,
            "accumulated batches": self.trainer.accumulate_grad_batches > 1,
            "gradient checkpointing": self.hparams.get("grad_checkpointing"),
            "mixed precision": "mixed" in str(self.trainer.precision),
            "batch norm": any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.modules()),
        }
        for name in (name for name, there in in_the_way.items() if there):
            raise InputError(f"model.init_args.compile graphs does not go with {name}: set compile to true or false")

    def on_train_start(self) -> None:
        """Fix the schedule, which depends on the data and the devices. Raises `InputError` for a run without an end."""
        steps = float(self.trainer.estimated_stepping_batches)
        self._steps = steps if steps > 0 else math.inf  # -1 stands for no end where the data have no length
        timer = find_timer(self.trainer)
        self._clock = timer if isinstance(timer, Clock) else None
        if self._clock is None and not math.isfinite(self._steps):
            raise InputError("the schedule needs an end: set trainer.max_epochs, trainer.max_steps or trainer.max_time")
        total = self._steps if self._clock is None else 1.0
        self._warmup, self._total = self._length_of_warmup(total), total
        self.peak_lr = scaled_lr(self.recipe.base_lr, self.effective_batch())
        if self.trainer.is_global_zero and self.trainer.loggers:
            print(self._summary())

    def _length_of_warmup(self, total: float) -> float:
        """Length of the warm-up, in the unit of `total`: a share of the run, or epochs out of all epochs."""
        if self.recipe.warmup_share is not None:
            return self.recipe.warmup_share * total
        if not self.recipe.warmup_epochs:
            return 0.0
        batches = self.trainer.num_training_batches
        if not math.isfinite(batches) or not math.isfinite(self._steps):
            raise InputError(
                "recipe.warmup_epochs needs data with a length and a number of epochs or steps: set recipe.warmup_share"
            )
        steps = self.recipe.warmup_epochs * math.ceil(batches / self.trainer.accumulate_grad_batches)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return min(steps, total)
        if steps >= self._steps:
            raise InputError(
                f"recipe.warmup_epochs {self.recipe.warmup_epochs:g} is {steps:.0f} steps and the whole run "
                f"{self._steps:.0f}: lower the warm-up, or train for longer"
            )
        return steps if self._clock is None else steps / self._steps

    def _batch_size(self) -> int:
        source: Any = getattr(self.trainer, "datamodule", None) or self.trainer.train_dataloader
        if not hasattr(source, "batch_size"):
            raise InputError("recipe.effective_batch needs data that say their batch_size: give a data module")
        return int(source.batch_size)

    def batch(self) -> dict[str, int]:
        """What one optimizer step sees: samples of a process in a batch, processes, batches accumulated, and all."""
        size, processes, accumulated = self._batch_size(), self.trainer.world_size, self.trainer.accumulate_grad_batches
        return {
            "batch_size": size,
            "processes": processes,
            "accumulate_grad_batches": accumulated,
            "effective_batch": size * processes * accumulated,
        }

    def effective_batch(self) -> int:
        """Samples that one optimizer step sees, over all devices and accumulated batches."""
        return self.batch()["effective_batch"]

    def _summary(self) -> str:
        """What the run uses, in a line."""
        size, processes, accumulated, samples = self.batch().values()
        steps = "" if math.isinf(self._steps) else f", {self._steps:.0f} steps"
        return (
            f"{samples} samples a step ({size} x {processes} processes x {accumulated} accumulated){steps}, "
            f"a warm-up over {self._warmup / self._total:.1%}, learning rate up to {self.peak_lr:.3g}"
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate and the random streams: pure functions of the step, so a resumed run loses nothing.

        Under `trainer.max_time` it is one of the share of that time that has gone, or of the share of the steps where
        their end is nearer. Time starts again where a resumed run's checkpoint was saved.
        """
        step = self.trainer.global_step
        done = step if self._clock is None else max(step / self._steps, self._clock.share)
        recipe = self.recipe
        options = (recipe.min_lr, recipe.schedule, recipe.decay_share)
        lr = scheduled_lr(done, self._warmup, self._total, self.peak_lr, *options)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if is_logged(self.trainer, self.trainer.global_step + 1):
            self.log("train/lr", torch.tensor(lr))  # a number would be sent to the device, for which the host waits
        self.seed_step(derive_seed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def on_validation_start(self) -> None:
        """Count in fp32 under any precision: bf16 counts to 256."""
        for part in self.modules():
            if isinstance(part, Metric):
                part.to(torch.float32)

    def seed_step(self, seed: int) -> None:
        """Start the random streams of a step anew: a resumed run draws the dropout that it would have."""
        torch.manual_seed(seed)

    def noise(self, shape: tuple[int, ...], *key: str | int) -> Tensor:
        """Noise (B, ...) that decides the masks: this process's rows of the noise of the batch over all devices.

        Samples are dealt to the processes in turn, so one process with the whole batch draws the same masks.
        """
        (count, *rest), world = shape, self.trainer.world_size
        generator = torch.Generator(self.device).manual_seed(derive_seed(self.seed, "mask", *key))
        # In fp32 under any precision, for bf16 knows 256 numbers alone between 0.5 and 1.
        noise = torch.rand(count * world, *rest, generator=generator, device=self.device, dtype=torch.float32)
        return noise[self.trainer.global_rank :: world]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient, at the steps that are logged."""
        if not is_logged(self.trainer, self.trainer.global_step + 1):
            return
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        scaler: torch.amp.GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler and unscales(optimizer):
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.log("train/grad_norm", norm)
