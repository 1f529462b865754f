"""What all measures share: fp32 whatever the model runs in, and tokens that do not count."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")


def in_fp32(measure: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A measure that casts half-precision tensors to fp32 and leaves autocast, which would undo that in products."""

    def widen(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @wraps(measure)
    def measured(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(args[0].device.type, enabled=False):
            return measure(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return cast(Callable[P, Tensor], measured)


def count_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """n of each sample: (batch,)."""
    return tokens.new_full((len(tokens),), tokens.shape[1]) if mask is None else mask.sum(1).to(tokens.dtype)


def keep(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in place of tokens that do not count; a product with the mask would let a NaN through."""
    return tokens if mask is None else tokens.masked_fill(~mask.bool().unsqueeze(-1), 0.0)


def norms(tokens: Tensor) -> Tensor:
    """||x_i||: (batch, tokens)."""
    return cast(Tensor, torch.linalg.vector_norm(tokens, dim=-1))


def inverse_norms(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """1 / ||x_i||, and 0 for tokens that are zero or do not count: (batch, tokens)."""
    lengths = norms(tokens)
    left_out = lengths == 0 if mask is None else (lengths == 0) | ~mask.bool()
    return (1 / lengths).masked_fill(left_out, 0.0)
