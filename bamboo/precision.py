"""The precision in which a trained model runs, where the person leaves it to the device."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch takes a second to import, which `--help` can do without
    import torch

Precision = Literal["auto", "32", "bf16"]
"""fp32, bf16 autocast, or the latter where it is a GPU that has it."""


def autocast(precision: Precision, device: "torch.device") -> "torch.autocast":
    """A context for forward passes on `device` in a precision."""
    import torch

    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and has_bf16)
    )
