"""What every run watches besides its loss: its speed, and whether its numbers are still numbers."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from bamboo.errors import Diverged, InputError
from bamboo.nonfinite import first_non_finite, leave_out
from bamboo.processes import of_all_processes
from bamboo.training import TrainingModule, is_logged


class Throughput(Callback):
    """Logs samples per second over all devices, milliseconds waited for data per step, and model FLOP utilisation.

    Averages over the steps between two logs; validation is not counted. Utilisation (the FLOPs that the model needs
    over the peak of the device) is logged where Lightning knows the peak and the module can count its FLOPs.
    Lightning's own ThroughputMonitor waits for the device in every batch.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look up the peak of the device and count the FLOPs of a sample, once."""
        precision = str(trainer.precision)
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        peak = get_available_flops(trainer.strategy.root_device, dtype)
        flops_per_sample = getattr(pl_module, "flops_per_sample", None)
        self.peak_samples_per_s = peak / flops_per_sample() if peak and flops_per_sample else None
        self.step = trainer.global_step
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
        if trainer.global_step == self.step or not is_logged(trainer, trainer.global_step):
            return  # in between accumulated batches too
        self.step = trainer.global_step
        assert isinstance(pl_module, TrainingModule)
        per_device = pl_module.effective_batch() / trainer.accumulate_grad_batches / trainer.world_size
        rate = per_device * self.batches / (self.asked - self.since)
        logs = {"samples_per_s": rate * trainer.world_size, "data_wait_ms": 1000 * self.waited / self.batches}
        if self.peak_samples_per_s:
            logs["mfu"] = rate / self.peak_samples_per_s
        pl_module.log_dict({f"speed/{name}": value for name, value in logs.items()})
        self._reset()

    def _reset(self) -> None:
        self.since = self.asked = time.perf_counter()
        self.waited, self.batches = 0.0, 0


@dataclass
class _Noted:
    """A batch, and whether it is bad (scalar, 0 or 1): on the device, and on the host as soon as the copy is there."""

    batch: Any
    batch_idx: int
    step: int
    bad: Tensor
    copy: Tensor
    copied: torch.cuda.Event | None

    def is_bad(self) -> bool:
        """Wait for the copy, and read it."""
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.copy)


class NonFiniteGuard(Callback):
    """Stops a run at the first loss or gradient that is not finite, before it reaches a weight.

    All processes agree on it and stop together. On a CPU it is noticed at once; on a GPU in the next batch, for else
    the host would wait for the device in each, and the device itself leaves the update out. Under `16-mixed` gradients
    overflow now and then, and the scaler leaves these updates out: there the loss alone counts.

    Raises:
        Diverged: naming the step and the first tensor that is not finite; `InputError` where that is the batch's.
    """

    _noted: _Noted | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep hold of the batch, to be able to run it again."""
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Read what was noted of the batch before, and note a bad loss on any process."""
        self._read(trainer, pl_module)
        bad = (~torch.isfinite(loss.detach())).float()
        if trainer.world_size > 1:
            distributed.all_reduce(bad, distributed.ReduceOp.MAX)
        self._note(trainer, pl_module, bad)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note bad gradients, which are the same on all processes by now, and leave the update out if there are any."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = (~torch.isfinite(nn.utils.get_total_norm(gradients))).float()
        if self._noted is not None:
            bad = torch.maximum(bad, self._noted.bad)
        leave_out(optimizer, gradients, bad)
        self._note(trainer, pl_module, bad)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what was noted of the last batch."""
        self._read(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never save a weight that is not finite."""
        self._read(trainer, pl_module)
        for name, weight in pl_module.named_parameters():
            if not weight.isfinite().all():
                raise Diverged(f"the weight {name} is not finite after {trainer.global_step} steps{_last(trainer)}")

    def _note(self, trainer: Trainer, pl_module: LightningModule, bad: Tensor) -> None:
        copy = bad.to("cpu", non_blocking=True)  # into pinned memory
        copied = torch.cuda.current_stream(bad.device).record_event() if bad.is_cuda else None
        self._noted = _Noted(self._batch, self._batch_idx, trainer.global_step, bad, copy, copied)
        if reads_at_once(bad.device):
            self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> None:
        noted, self._noted = self._noted, None
        if noted is None or not noted.is_bad():
            return
        assert isinstance(pl_module, TrainingModule)
        culprit = agree(first_non_finite(pl_module, noted.batch, noted.batch_idx))
        what = "a gradient" if "gradient" in culprit else "the loss"
        raise (InputError if culprit.startswith("the batch's") else Diverged)(
            f"{what} is not finite at step {noted.step}: the first tensor that is not is {culprit}{_last(trainer)}"
        )


def reads_at_once(device: torch.device) -> bool:
    """Whether a number on a device can be read without waiting for what else the device has to do."""
    return device.type != "cuda"


def agree(culprit: str | None) -> str:
    """What to call the culprit, where each process has looked for it in its own batch."""
    culprits = of_all_processes(culprit)
    for rank, name in enumerate(culprits):
        if name:
            return f"{name} (process {rank} of {len(culprits)})" if len(culprits) > 1 else name
    return "not seen when the batch is run again"


def _last(trainer: Trainer) -> str:
    return f"; last good checkpoint: {getattr(trainer.checkpoint_callback, 'last_model_path', '') or 'none was saved'}"
