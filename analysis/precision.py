"""Keeps measures in fp32 whatever precision the model runs in."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
HALF = (torch.float16, torch.bfloat16)


def in_fp32(measure: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A measure that casts half-precision tensors to fp32 and leaves autocast, which would undo that in products."""

    @wraps(measure)
    def measured(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        wide: Any = tuple(map(_widen, args)), {name: _widen(value) for name, value in kwargs.items()}
        if not torch.is_autocast_enabled(device):
            return measure(*wide[0], **wide[1])
        with torch.autocast(device, enabled=False):
            return measure(*wide[0], **wide[1])

    return measured


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
