"""How everything here is trained: the learning-rate rule, schedules, optimizers, and the module that applies them."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lars, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torchmetrics import Metric

from bamboo.came import CAME
from bamboo.clock import Clock, find_timer
from bamboo.errors import InputError
from bamboo.seeds import derive_seed

Schedule = Literal["cosine", "linear", "trapezoid"]

OF_THE_OPTIMIZER = ("optimizer", "betas", "eps", "weight_decay", "layer_decay", "layer_decay_depth")
"""The options that the state of an optimizer holds, so that a resumed run cannot change them."""


@dataclass(frozen=True)
class Recipe:
    """An optimizer under a schedule that starts with a linear warm-up; the defaults are those of MAE pretraining.

    BERT's schedule is `linear` with a `warmup_share` of 0.01. A triangle, as runs of one day have, is `linear` with a
    warm-up as long as it rises, 0.75 for example.

    Args:
        base_lr: learning rate for an effective batch of 256; the rate used grows in proportion to the batch.
        min_lr: learning rate at the end of the schedule.
        warmup_epochs: length of the linear warm-up, in epochs (fractions are fine).
        weight_decay: decoupled weight decay of matrices; vectors and biases have none.
        betas: decay rates of the two moments; LARS takes the first one as its momentum, and CAME a third one for
            deviations from the first moment, 0.9999 if it is left out.
        optimizer: `adamw`; `lars` with a trust coefficient of 0.001, which adapts matrices alone; or `came`, which
            needs half of AdamW's memory and takes 0.5 to 0.9 of its learning rate.
        eps: what AdamW adds to the root of the second moment.
        schedule: after the warm-up half a cosine down to `min_lr`, a straight line, or (`trapezoid`) the full rate
            until a straight line over the last `decay_share`.
        warmup_share: length of the warm-up as a share of the whole run, in place of `warmup_epochs`; a run that
            `trainer.max_time` alone ends has no other.
        decay_share: share of the whole run in which a trapezoid comes down.
        effective_batch: samples that one optimizer step sees, over all processes; as many batches are accumulated as
            that takes, see `accumulation`. 0 for what the processes give, and accumulation as it is configured.

    Raises:
        InputError: for a value out of its range, or another number of betas than the optimizer takes.
    """

    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, ...] = (0.9, 0.95)
    optimizer: Literal["adamw", "lars", "came"] = "adamw"
    eps: float = 1e-8
    schedule: Schedule = "cosine"
    warmup_share: float | None = None
    decay_share: float = 0.1
    effective_batch: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        counts = (2, 3) if self.optimizer == "came" else (2,)
        if len(self.betas) not in counts or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(
                f"recipe.betas: {self.optimizer} takes {' or '.join(map(str, counts))} numbers from 0 to below 1: "
                f"{[*self.betas]}"
            )
        for name in ("warmup_share", "decay_share"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"recipe.{name} must lie between 0 and 1: {getattr(self, name)}")
        if not self.eps >= 0:
            raise InputError(f"recipe.eps must be 0 or more: {self.eps}")
        if self.effective_batch < 0:
            raise InputError(f"recipe.effective_batch must be 0 or more: {self.effective_batch}")


def scaled_lr(base_lr: float, effective_batch: int) -> float:
    """The linear rule (Goyal et al. 2017): base_lr x effective batch / 256, over devices and accumulated batches."""
    return base_lr * effective_batch / 256


def accumulation(effective_batch: int, batch_size: int, processes: int, configured: int = 1) -> int:
    """Batches to accumulate until a step has seen `effective_batch` samples.

    Args:
        effective_batch: samples of one optimizer step.
        batch_size: samples of one process in one batch.
        processes: how many there are.
        configured: accumulation that somebody asked for; 1 for none.

    Raises:
        InputError: where that is no whole number, naming what would fit, or not what was asked for.
    """
    at_once, (share, rest) = batch_size * processes, divmod(effective_batch, processes)
    if rest:
        below = effective_batch // at_once * at_once
        raise InputError(
            f"recipe.effective_batch {effective_batch} cannot be shared equally among {processes} processes: take a "
            f"number of processes that divides it, or an effective batch of {below or at_once} or "
            f"{(below or at_once) + at_once}"
        )
    if share % batch_size:
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        near = {max(n for n in fitting if n < batch_size), min((n for n in fitting if n > batch_size), default=share)}
        raise InputError(
            f"recipe.effective_batch {effective_batch} is no multiple of {processes} processes x "
            f"data.init_args.batch_size {batch_size}: take a batch size of {' or '.join(map(str, sorted(near)))}"
        )
    if configured not in (1, share // batch_size):
        raise InputError(
            f"trainer.accumulate_grad_batches {configured} makes {at_once * configured} samples a step and "
            f"recipe.effective_batch says {effective_batch}: leave the first out, or set the second to 0"
        )
    return share // batch_size


def scheduled_lr(
    done: float,
    warmup: float,
    total: float,
    peak: float,
    floor: float = 0.0,
    schedule: Schedule = "cosine",
    decay_share: float = 0.1,
) -> float:
    """Learning rate after a part of a run: from 0 up to `peak` in a straight line, and in the end down to `floor`.

    Args:
        done: how far the run is, in the unit of `warmup` and `total`: steps, seconds, or shares of the whole.
        warmup: length of the way up.
        total: length of the run; beyond it the rate stays at the floor.
        peak: highest rate.
        floor: last rate.
        schedule: way down, see `Recipe`.
        decay_share: share of `total` that a trapezoid takes for it.
    """
    if done < warmup:
        return peak * done / warmup
    top = max(warmup, (1 - decay_share) * total) if schedule == "trapezoid" else warmup
    progress = min(1.0, max(0.0, done - top) / (total - top)) if total > top else float(done >= total)
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return floor + (peak - floor) * left


def check_layer_decay(layer_decay: float, written_for: int) -> None:
    """Raises `InputError` where `layer_decay` does not lie between 0 and 1, or it is written for no depth."""
    if not 0 < layer_decay <= 1 or written_for < 1:
        raise InputError(
            f"layer_decay must lie between 0 and 1, and the depth be positive: {layer_decay}, {written_for}"
        )


def layer_decay_groups(
    encoder: VisionTransformer, layer_decay: float, weight_decay: float, written_for: int = 12
) -> list[dict[str, Any]]:
    """Parameter groups whose `lr_scale` falls from the head, 1, down to the embedding.

    Layer l of a network of `depth` blocks (0 is the embedding) gets the scale that the layer at the same relative depth
    has in a network of `written_for` blocks, layer_decay ** (1 + written_for (1 - l / depth)). At that depth it is the
    published rule, layer_decay ** (depth + 1 - l) (Bao et al. 2022, He et al. 2022); at any depth the total from head
    to embedding is the same, and from block to block the factor is layer_decay ** (written_for / depth).

    Args:
        encoder: a ViT with its head, and what else is trained with it.
        layer_decay: factor from one layer to the layer below it, in a network of `written_for` blocks.
        weight_decay: of matrices; vectors, biases, class token and positions have none.
        written_for: number of blocks.

    Raises:
        InputError: where `layer_decay` does not lie between 0 and 1.
    """
    check_layer_decay(layer_decay, written_for)
    step = written_for / len(encoder.blocks)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder, weight_decay, encoder.no_weight_decay(), layer_decay=layer_decay**step
    )
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    for group in groups:
        group["layer"] = _layer(names[group["params"][0]])
        if group["layer"] != "head":  # from the head to the last block it is a whole step at every depth
            group["lr_scale"] *= layer_decay ** (1 - step)
    return groups


def _layer(name: str) -> str:
    """What to call the layer of a timm ViT that a parameter belongs to; a final norm goes with the last block."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return f"block {block[1]}"
    return "embedding" if re.match(r"cls_token|reg_token|pos_embed|patch_embed|norm_pre", name) else "head"


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of a recipe over groups of parameters; the learning rate is set before every step."""
    if recipe.optimizer == "adamw":
        beta1, beta2 = recipe.betas
        return torch.optim.AdamW(groups, lr=recipe.base_lr, betas=(beta1, beta2), eps=recipe.eps, fused=fused)
    if recipe.optimizer == "came":
        beta1, beta2, beta3 = (*recipe.betas, 0.9999)[:3]
        return CAME(groups, lr=recipe.base_lr, betas=(beta1, beta2, beta3))
    split = [
        {**group, "params": chosen, "always_adapt": matrices}
        for group in groups
        for matrices in (True, False)
        if (chosen := [parameter for parameter in group["params"] if (parameter.ndim > 1) == matrices])
    ]
    optimizer: torch.optim.Optimizer = Lars(split, lr=recipe.base_lr, momentum=recipe.betas[0], trust_coeff=0.001)
    return optimizer


def unscales(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer takes the scale of fp16's gradients away itself, and can leave a step out: a fused one."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries, so that a checkpoint holds nothing but tensors and plain values."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def plain_arguments(arguments: Mapping[str, Any], further: str = "") -> dict[str, Any]:
    """All arguments of a constructor, its `locals()`, as plain values: what `load_from_checkpoint` builds it from.

    Args:
        arguments: the local variables at the start of the constructor.
        further: the name of its `**` arguments, which stand beside the others.
    """
    named = {name: value for name, value in arguments.items() if name not in ("self", "__class__", further)}
    return {name: plain(value) for name, value in {**named, **arguments.get(further, {})}.items()}


def is_logged(trainer: Trainer, steps: int) -> bool:
    """Whether Lightning hands to its loggers what is logged in the step that makes it `steps` in all."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (steps % every == 0 or trainer.should_stop)


class TrainingModule(LightningModule):
    """A LightningModule that trains by a `Recipe`. A task adds `compute`, the maths of one step.

    Args:
        recipe: learning rate, schedule and optimizer; as a mapping where it comes out of a checkpoint.
    """

    seed: int

    def __init__(self, recipe: Recipe | Mapping[str, Any]) -> None:
        super().__init__()
        self.recipe = Recipe(**recipe) if isinstance(recipe, Mapping) else recipe

    def compute(self, batch: Any, batch_idx: int, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what else is worth logging, for one batch in `train` or `val`."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of training; Lightning does the rest.

        The host waits for the device at the steps that are logged alone. Lightning reads what the progress bar shows in
        every batch from then on, so that is kept on the CPU.
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
        """Refuse the checkpoint of another model, or to go on with another optimizer.

        Raises:
            InputError: naming the first weight or option that differs.
        """
        ours, theirs = self.state_dict(), checkpoint["state_dict"]
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            here, there = (list(state[name].shape) if name in state else "absent" for state in (ours, theirs))
            if here != there:
                raise InputError(f"the checkpoint is of another model: {name} is {there} in it and {here} here")
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._check_optimizer(checkpoint.get("hyper_parameters", {}))

    def _check_optimizer(self, saved: Mapping[str, Any]) -> None:
        """A resumed optimizer brings its own options, in the place of those that are configured now."""
        theirs, ours = {**saved, **saved.get("recipe", {})}, {**self.hparams, **asdict(self.recipe)}
        for key in OF_THE_OPTIMIZER:
            if key in theirs and key in ours and theirs[key] != ours[key]:
                raise InputError(
                    f"the checkpoint was trained with {key} {theirs[key]}, and the configuration says {ours[key]}: "
                    "a run goes on with its own optimizer; start a new one for another"
                )

    def on_fit_start(self) -> None:
        """Accumulate batches up to the effective batch of the recipe. Raises `InputError` where that cannot be."""
        if self.recipe.effective_batch:
            size, processes, configured = (
                self._batch_size(),
                self.trainer.world_size,
                self.trainer.accumulate_grad_batches,
            )
            self.trainer.accumulate_grad_batches = accumulation(
                self.recipe.effective_batch, size, processes, configured
            )

    def on_train_start(self) -> None:
        """Fix the schedule, which depends on the data and the devices. Raises `InputError` for a run without an end."""
        steps = float(self.trainer.estimated_stepping_batches)
        self._steps = steps if steps > 0 else math.inf  # -1 stands for no end where the data have no length
        self._clock = find_timer(self.trainer, Clock)
        if self._clock is None and not math.isfinite(self._steps):
            raise InputError("the schedule needs an end: set trainer.max_epochs, trainer.max_steps or trainer.max_time")
        total = self._steps if self._clock is None else 1.0
        self._schedule: dict[str, Any] = {
            "warmup": self._warmup(total),
            "total": total,
            "peak": scaled_lr(self.recipe.base_lr, self.effective_batch()),
            "floor": self.recipe.min_lr,
            "schedule": self.recipe.schedule,
            "decay_share": self.recipe.decay_share,
        }
        if self.trainer.is_global_zero and self.trainer.loggers:
            print(self._summary())

    def _warmup(self, total: float) -> float:
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
        parts = {
            "batch_size": self._batch_size(),
            "processes": int(self.trainer.world_size),
            "accumulate_grad_batches": int(self.trainer.accumulate_grad_batches),
        }
        return {**parts, "effective_batch": math.prod(parts.values())}

    def effective_batch(self) -> int:
        """Samples that one optimizer step sees, over all devices and accumulated batches."""
        return self.batch()["effective_batch"]

    def _summary(self) -> str:
        """What the run uses, in a line."""
        size, processes, accumulated, samples = self.batch().values()
        steps = "" if math.isinf(self._steps) else f", {self._steps:.0f} steps"
        warmup, total = self._schedule["warmup"], self._schedule["total"]
        return (
            f"{samples} samples a step ({size} x {processes} processes x {accumulated} accumulated){steps}, "
            f"a warm-up over {warmup / total:.1%}, learning rate up to {self._schedule['peak']:.3g}"
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate: nothing to save, nothing for a resumed run to lose.

        It is a pure function of the step. Under `trainer.max_time` it is one of the share of that time that has gone,
        or of the share of the steps where they have an end that is nearer. Time starts again where a resumed run's
        checkpoint was saved, and is that of the first process for all.
        """
        lr = scheduled_lr(self._done(), **self._schedule)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if is_logged(self.trainer, self.trainer.global_step + 1):
            self.log("train/lr", torch.tensor(lr))  # a number would be sent to the device, for which the host waits

    def _done(self) -> float:
        """How far the run is: in steps, or in shares of the whole where time is bounded."""
        step = self.trainer.global_step
        return step if self._clock is None else max(step / self._steps, self._clock.share)

    def on_validation_start(self) -> None:
        """Count in fp32 under any precision: bf16 counts to 256."""
        for part in self.modules():
            if isinstance(part, Metric):
                part.to(torch.float32)

    def seed_step(self, batch_idx: int) -> None:
        """Start the random stream of dropout anew, by the module's `seed`: a resumed run draws what it would have."""
        torch.manual_seed(derive_seed(self.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradient, at the steps that are logged."""
        if not is_logged(self.trainer, self.trainer.global_step + 1):
            return
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        scaler: torch.amp.GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler and unscales(optimizer):
            norm = norm / scaler.scale(torch.ones_like(norm))
        self.log("train/grad_norm", norm)
