"""CAME (Luo et al. 2023): Adam's update out of factored second moments, smaller where it deviates from its average."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from bamboo.errors import InputError

CPU_GROUP, DEVICE_GROUP = 2**19, 2**25
"""Elements of the tensors that are treated together, and so of the working memory: what stays in the cache of a CPU,
and what keeps another device busy long enough that launching the kernels takes no time of its own."""


class CAME(torch.optim.Optimizer):
    """Confidence-guided adaptive memory-efficient optimization (Luo et al. 2023, arXiv 2307.02047, algorithm 2).

    For a matrix with gradient g, with means over its rows and over its columns in place of full second moments:

        r, c <- averages (beta2) of the means of g^2 + eps1;  u = g / sqrt(r c / mean(r))
        u <- u / max(1, RMS(u) / clip);  m <- average (beta1) of u
        R, C <- averages (beta3) of the means of (u - m)^2 + eps2
        parameter <- (1 - lr weight_decay) parameter - lr m / sqrt(R C / mean(R))

    The paper writes sums where this writes means, which gives the same quotients. There is no correction of the bias.
    Tensors with more than two dimensions are stacks of matrices, clipped as a whole. Vectors and scalars have a full
    second moment and are updated by m. `lr` is 0.5 to 0.9 of what suits AdamW, and the state half as large.

    The state is kept in at least 32 bits whatever the parameters are: in bfloat16 an average with a decay of 0.9999
    would never move. A step waits for nothing on the device. Sparse and complex gradients are refused.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "clip": clip, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own. Raises `InputError` for one out of its range."""
        super().add_param_group(param_group)
        _check(**{name: self.param_groups[-1][name] for name in self.defaults})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over the parameters that have a gradient; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in _alike(group["params"]):
                for param in params:
                    if not self.state[param]:
                        self.state[param] = _zero_state(param)
                _update(params, [self.state[param] for param in params], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, in its own precision, where torch would convert it to that of the parameters."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        for param, index in zip(params, saved, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[param][name] = value.to(param.device, _precision(param))


def _check(lr: float, betas: tuple[float, ...], eps: tuple[float, ...], clip: float, weight_decay: float) -> None:
    """Raise `InputError` for the first option that is out of its range."""
    rules = {
        f"lr must be 0 or more: {lr}": lr >= 0,
        f"betas must be three numbers from 0 to below 1: {betas}": len(betas) == 3 and all(0 <= b < 1 for b in betas),
        f"eps must be two numbers, 0 or more: {eps}": len(eps) == 2 and min(eps) >= 0,
        f"clip must be above 0: {clip}": clip > 0,
        f"weight_decay must be 0 or more: {weight_decay}": weight_decay >= 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"CAME: {rule}")


def _alike(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, in groups of one shape, type and device and of a bounded size."""
    groups = defaultdict(list)
    for param in params:
        if param.grad is not None and param.numel():
            if param.grad.is_sparse or param.grad.is_complex():
                raise InputError("CAME takes no sparse or complex gradients")
            groups[param.shape, param.dtype, param.device].append(param)
    for (shape, _, device), group in groups.items():
        most = CPU_GROUP if device.type == "cpu" else DEVICE_GROUP
        count = max(1, most // shape.numel())
        yield from (group[start : start + count] for start in range(0, len(group), count))


def _precision(param: Tensor) -> torch.dtype:
    """What to calculate in, and to keep the state in."""
    return torch.promote_types(param.dtype, torch.float32)


def _zero_state(param: Tensor) -> dict[str, Tensor]:
    """The averages of a parameter before its first step."""
    shapes = {"exp_avg": param.shape}
    if param.ndim < 2:
        shapes["exp_avg_sq"] = param.shape
    else:
        for of in ("sq", "res"):
            shapes[f"exp_avg_{of}_row"] = param.shape[:-1]
            shapes[f"exp_avg_{of}_col"] = param.shape[:-2] + param.shape[-1:]
    return {name: torch.zeros(shape, dtype=_precision(param), device=param.device) for name, shape in shapes.items()}


def _update(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    """One step of parameters (K) of one shape, in one piece of working memory (K, *shape)."""
    lr, (beta1, beta2, beta3), (eps1, eps2) = group["lr"], group["betas"], group["eps"]
    gradients = [param.grad for param in params if param.grad is not None]
    averages = [state["exp_avg"] for state in states]
    work = torch.empty(len(params), *params[0].shape, dtype=_precision(params[0]), device=params[0].device)
    each = work.unbind()

    torch._foreach_copy_(each, gradients)
    factors = _inverse_roots(work.square_(), states, "sq", beta2, eps1)
    torch._foreach_copy_(each, gradients)
    for factor in factors:
        work.mul_(factor)
    rms = torch.linalg.vector_norm(work.view(len(params), -1), dim=1) / math.sqrt(each[0].numel())
    work.div_((rms / group["clip"]).clamp_(min=1).view(-1, *[1] * each[0].ndim))
    torch._foreach_lerp_(averages, each, 1 - beta1)

    updates = averages
    if each[0].ndim > 1:
        torch._foreach_sub_(each, averages)
        factors = _inverse_roots(work.square_(), states, "res", beta3, eps2)
        torch._foreach_copy_(each, averages)
        for factor in factors:
            work.mul_(factor)
        updates = [*each]
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    torch._foreach_add_(params, updates, alpha=-lr)


def _inverse_roots(
    squares: Tensor, states: list[dict[str, Tensor]], of: str, beta: float, eps: float
) -> tuple[Tensor, ...]:
    """Take squares (K, ..., n, m) into the averages; the factors, of which the product is 1 / sqrt(r c / mean(r))."""
    if squares.ndim < 3:
        return (_average([state[f"exp_avg_{of}"] for state in states], squares.add_(eps), beta).rsqrt_(),)
    rows = _average([state[f"exp_avg_{of}_row"] for state in states], squares.mean(-1).add_(eps), beta)
    columns = _average([state[f"exp_avg_{of}_col"] for state in states], squares.mean(-2).add_(eps), beta)
    rows /= rows.mean(-1, keepdim=True)
    return rows.rsqrt_().unsqueeze(-1), columns.rsqrt_().unsqueeze(-2)


def _average(averages: list[Tensor], values: Tensor, beta: float) -> Tensor:
    """Move averages towards values (K, ...); a copy of them, stacked."""
    torch._foreach_lerp_(averages, values.unbind(), 1 - beta)
    return torch.stack(averages)
