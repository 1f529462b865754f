"""Numbers that are none: leaving an update out, and finding the tensor that went bad first."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from bamboo.optimizers import unscales
from bamboo.training import TrainingModule


def leave_out(optimizer: Optimizer, gradients: Sequence[Tensor], bad: Tensor) -> None:
    """Keep the next update away from the weights where `bad` is 1, without waiting for the device to know.

    A fused optimizer then does nothing; another one gets gradients of zero, and so does what its averages say.
    """
    if unscales(optimizer):
        optimizer.found_inf = bad  # type: ignore[attr-defined]  # as `torch.amp.GradScaler` does
        return
    for gradient in gradients:
        gradient.masked_fill_(bad.bool(), 0)


def first_non_finite(module: TrainingModule, batch: Any, batch_idx: int) -> str | None:
    """Run a batch again, and name the first tensor in running order that is not finite, if there is one.

    Looked at are the batch, the weights, the output of every part, the loss and, from it backwards, the gradients.
    Weights come before outputs: where no bad update reaches them, a bad one was so before.
    """
    inputs = batch.items() if isinstance(batch, dict) else enumerate(batch)
    for key, value in inputs:
        if isinstance(value, Tensor) and not value.isfinite().all():
            return f"the batch's {key!r}"
    with module.trainer.precision_plugin.train_step_context(), torch.compiler.set_stance("force_eager"):
        with torch.no_grad():
            order, outputs, loss = _run(module, batch, batch_idx)
        weights = sorted(module.named_parameters(), key=lambda item: _place(item[0], order))
        for name, weight in weights:
            if not weight.isfinite().all():
                return f"the weight {name}"
        if outputs or not loss.isfinite():
            return f"the output of {outputs[0]}" if outputs else "the loss itself"
        return _bad_gradient(module, batch, batch_idx, weights)


def _run(module: TrainingModule, batch: Any, batch_idx: int) -> tuple[dict[str, int], list[str], Tensor]:
    """Run a batch: the place of every part in running order, the parts with bad outputs in that order, the loss."""
    order: dict[str, int] = {}
    bad: list[str] = []

    def enter(name: str) -> None:
        order.setdefault(name, len(order))

    def look(name: str, output: Any) -> None:
        finite: list[bool] = []
        apply_to_collection(output, Tensor, lambda tensor: finite.append(bool(tensor.isfinite().all())))
        if not all(finite):
            bad.append(name)

    handles = []
    for name, part in module.named_modules():
        if name:
            handles += [
                part.register_forward_pre_hook(lambda *_, name=name: enter(name)),
                part.register_forward_hook(lambda *args, name=name: look(name, args[-1])),
            ]
    try:
        return order, bad, module.compute(batch, batch_idx, "train")[0]
    finally:
        for handle in handles:
            handle.remove()


def _place(name: str, order: dict[str, int]) -> int:
    """Where in running order a weight is used: where its owner starts, or what contains it, if that is not called."""
    while name:
        name = name.rpartition(".")[0]
        if name in order:
            return order[name]
    return -1


def _bad_gradient(
    module: TrainingModule, batch: Any, batch_idx: int, weights: Sequence[tuple[str, nn.Parameter]]
) -> str | None:
    """The first bad gradient from the loss backwards; `weights` are in running order."""
    trained = [(name, weight) for name, weight in reversed(weights) if weight.requires_grad]
    try:
        with torch.enable_grad():
            loss = module.compute(batch, batch_idx, "train")[0]
        # Not `backward`, of which other processes would have to know.
        gradients = torch.autograd.grad(loss, [weight for _, weight in trained], allow_unused=True)
    except torch.OutOfMemoryError:  # the pass that is under way is still in memory
        return "a gradient"
    bad = (
        name
        for (name, _), gradient in zip(trained, gradients, strict=True)
        if gradient is not None and not gradient.isfinite().all()
    )
    return next((f"the gradient of {name}" for name in bad), None)
