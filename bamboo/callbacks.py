"""What every run watches besides its loss: its speed, and whether its numbers are still numbers."""

import time
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bamboo.errors import InputError
from bamboo.training import TrainingModule, is_logged


class Throughput(Callback):
    """Logs samples per second over all devices, milliseconds waited for data per step, and model FLOP utilisation.

    Averages over the steps between two logs; validation is not counted. Utilisation (the FLOPs that the model needs
    over the peak of the device) is logged where Lightning knows the peak and the module can count its FLOPs.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the peak of the device and count the FLOPs of a sample, once."""
        precision = str(trainer.precision)
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        peak = get_available_flops(trainer.strategy.root_device, dtype)
        flops_per_sample = getattr(pl_module, "flops_per_sample", None)
        # The utilisation that one sample per second and device stands for.
        self.unit = flops_per_sample() / peak if peak and flops_per_sample else 0.0
        self._reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new average, so that what lies between epochs does not count."""
        self._reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new average, so that validation does not count."""
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch has come: the wait is over."""
        self.waited += time.perf_counter() - self.asked

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the steps that are logged. Reads clocks alone: nothing here waits for the device."""
        self.asked = time.perf_counter()
        self.batches += 1
        if not is_logged(trainer, trainer.global_step):
            return
        assert isinstance(pl_module, TrainingModule)
        per_device = pl_module.effective_batch() / trainer.accumulate_grad_batches / trainer.world_size
        rate = per_device * self.batches / (self.asked - self.since)
        logs = {"samples_per_s": rate * trainer.world_size, "data_wait_ms": 1000 * self.waited / self.batches}
        if self.unit:
            logs["mfu"] = rate * self.unit
        pl_module.log_dict({f"speed/{name}": value for name, value in logs.items()})
        self._reset()

    def _reset(self) -> None:
        self.since = self.asked = time.perf_counter()
        self.waited, self.batches = 0.0, 0


class NonFiniteGuard(Callback):
    """Stops a run whose loss is no longer a number, before a checkpoint is written over the last good one.

    On a CPU every loss is looked at before it is used. On other devices that would make the host wait in every step, so
    the first bad step is noted on the device and read at the steps that are logged and before a checkpoint is saved.

    Raises:
        InputError: naming the step and the first tensor that is not finite.
    """

    first_bad: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep hold of the batch, to be able to run it again."""
        self.batch, self.batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note a bad loss, without waiting for it."""
        step = trainer.global_step
        if self.first_bad is None:
            self.first_bad = torch.full((), -1, device=loss.device)
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)
        if loss.device.type == "cpu" or is_logged(trainer, step + 1):
            self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never save what a bad loss has spoilt."""
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.first_bad is None or (step := int(self.first_bad)) < 0:
            return
        self.first_bad = None
        assert isinstance(pl_module, TrainingModule)
        culprit = first_non_finite(pl_module, self.batch, self.batch_idx)
        last = getattr(trainer.checkpoint_callback, "last_model_path", "") or "none was saved"
        raise InputError(
            f"the loss is not finite at step {step}: the first tensor that is not is {culprit}; "
            f"last good checkpoint: {last}"
        )


@torch.no_grad()
def first_non_finite(module: TrainingModule, batch: Any, batch_idx: int) -> str:
    """Name the first tensor that is not finite: in the batch, the weights, or the modules' outputs in running order."""
    inputs = batch.items() if isinstance(batch, dict) else enumerate(batch)
    for key, value in inputs:
        if isinstance(value, Tensor) and not value.isfinite().all():
            return f"the batch's {key!r}"
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name}"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"the output of {name}")

        return hook

    handles = [child.register_forward_hook(watch(name)) for name, child in module.named_modules() if name]
    try:
        module.compute(batch, batch_idx, "train")
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"
