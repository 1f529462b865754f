"""The bound of Wang et al. 2022 on what attention leaves of the high-frequency part ||HC||, in terms of its weights.

Quoted second-hand; tests try to break it. In trained networks it is hundreds of times the measured gain.
"""

import torch
from torch import Tensor, nn

from ..architectures import find_attention, has_normed_branches, part_of
from .attention import pairs
from .masking import in_fp32

FUSED = ("qkv", "Wqkv", "in_proj_weight")
VALUES = ("value", "v_proj", *FUSED)
OUTPUTS = ("proj", "Wo", "out_proj", "o_proj")
LAYER_SCALES = ("ls1.gamma", "layer_scale1.lambda1", "gamma_1")


@in_fp32
def smoothing_rate(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """sqrt(n e^{2a} / (e^{2a} + n - 1)) with a = max |logit|, in [1, sqrt(n)]: the factor that bounds one softmax.

    ||HC[softmax(P) X]|| <= this factor x ||HC[X]|| for logits |P_ij| <= a: the single-head form of the rate. Where a
    pair of tokens is masked (a logit of minus infinity, as in local attention) it is sqrt(n), which bounds any
    attention. Logits (batch, heads, tokens, tokens) include scale and masks; `mask` (batch, tokens) is true for the n
    tokens that take part. Where keys are not those of the tokens (fewer of them) it is not defined, and NaN.
    """
    if logits.shape[-1] != logits.shape[-2]:
        return logits.new_full(logits.shape[:2], torch.nan)
    allowed = pairs(logits, mask)
    largest = logits.masked_fill(~allowed, 0.0).abs().amax((2, 3))
    count = allowed.sum((2, 3)).sqrt()
    return (count / (1 + (count - 1) * torch.exp(-2 * largest))).sqrt()


def rate_bound(rate: Tensor, value_norm: float, output_norm: float, heads: int) -> Tensor:
    """sigma_1 sigma_2 H rate: the most that multi-head attention can multiply ||HC|| by; with a residual 1 + this.

    `rate` is the `smoothing_rate` of the worst head; for sigma_1 and sigma_2 see `projection_norms`.
    """
    return value_norm * output_norm * heads * rate


@torch.no_grad()
def projection_norms(block: nn.Module, heads: int) -> tuple[float, float] | None:
    """sigma_1 and sigma_2: the largest spectral norms among the heads' value and output projections.

    With grouped queries there are fewer value projections than the `heads` of queries. None where attention is more
    than softmax and these two projections, so that the bound does not speak of it.
    """
    core, out = find_attention(block)
    extra = (getattr(core, name, None) for name in ("gate", "norm", "lamb"))
    if any(part is not None and not isinstance(part, nn.Identity) for part in extra):
        return None
    value_name, value = _first_matrix(core, VALUES)
    _, output = _first_matrix(core, OUTPUTS) if core is out else _first_matrix(out, ("",))
    if value is None or output is None:
        return None
    inner = output.shape[1]  # the width of all heads together
    if value_name in FUSED:  # queries of that width come first, then as many keys as values
        value = value[-(len(value) - inner) // 2 :]
    by_value_head = value.float().reshape(-1, inner // heads, value.shape[1])
    by_head = output.float().reshape(-1, heads, inner // heads).transpose(0, 1)
    return _largest_norm(by_value_head), _largest_norm(by_head)


@torch.no_grad()
def branch_scale(block: nn.Module) -> float:
    """The most that a layer scale multiplies what attention gives; 1 without one, NaN where a norm follows instead."""
    if has_normed_branches(block):
        return float("nan")
    scales = (part_of(block, name) for name in LAYER_SCALES)
    return next((scale.abs().max().item() for scale in scales if isinstance(scale, Tensor)), 1.0)


def _first_matrix(module: nn.Module, names: tuple[str, ...]) -> tuple[str, Tensor | None]:
    """The first of these parts that is a matrix or has one as its weight, with its name."""
    for name in names:
        part = part_of(module, name) if name else module
        weight = part if isinstance(part, Tensor) else getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            return name, weight
    return "", None


def _largest_norm(matrices: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrices, ord=2).max())
