"""See the attention maps that a fused kernel never writes down."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError

from .architectures import find_attention
from .precision import in_fp32

HIDDEN = torch.finfo(torch.float16).min / 2


@dataclass(frozen=True)
class ObservedAttention:
    """What softmax was taken of, scale and masks included, and its result: (batch, heads, tokens, tokens) in fp32."""

    logits: Tensor
    probabilities: Tensor

    @property
    def visible(self) -> Tensor:
        """True where a query may read a key: masks put minus infinity, or a type's lowest number, in place of it."""
        return self.logits > HIDDEN


@contextmanager
def observe_attention(
    model: nn.Module, blocks: Sequence[nn.Module], seen: Callable[[int, Any, Any, ObservedAttention], None]
) -> Iterator[None]:
    """Within the context, call `seen(layer, read, given, attention)` after the attention of each block, from 1.

    timm, Hugging Face and torchvision all attend through `scaled_dot_product_attention`, which is told to do so where
    it is not the default and replaced by one that computes the maps beside calling the fused kernel. So the outputs are
    those of the fused kernel, and logits are seen, which no library hands out. All is put back at the end.

    Raises:
        InputError: where a block has no attention of a known name, or attends in another way.
    """
    watch = _Watch(seen)
    with ExitStack() as undo:
        undo.callback(setattr, F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
        F.scaled_dot_product_attention = watch.wrap(F.scaled_dot_product_attention)
        # torchvision's attention would take a path of its own in evaluation.
        undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for owner, name, value in _fusing_switches(model):
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        for layer, block in enumerate(blocks, start=1):
            core, out = find_attention(block)
            undo.callback(core.register_forward_pre_hook(watch.enter, with_kwargs=True).remove)
            undo.callback(out.register_forward_hook(watch.leave(layer)).remove)
        yield


@in_fp32
def explicit_logits(
    query: Tensor, key: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """What `scaled_dot_product_attention` takes the softmax of: (batch, heads, queries, keys) in fp32."""
    if key.shape[-3] != query.shape[-3]:  # grouped queries
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is None:
        return logits
    return logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask


class _Watch:
    """Knows which module attends at the moment, and what it has attended with."""

    def __init__(self, seen: Callable[[int, Any, Any, ObservedAttention], None]):
        self.seen = seen
        self.core: nn.Module | None = None
        self.read: Any = None
        self.logits: list[Tensor] = []

    def wrap(self, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def observed(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            **kwargs: Any,
        ) -> Tensor:
            if self.core is not None:
                with torch.no_grad():
                    self.logits.append(explicit_logits(query, key, attn_mask, is_causal, scale))
            return kernel(
                query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, **kwargs
            )

        return observed

    def enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch._C._current_graph_task_id() == -1:  # not a repetition in the backward pass
            self.core, self.read, self.logits = core, args or tuple(kwargs.values()), []

    def leave(self, layer: int) -> Callable[..., None]:
        def hook(out: nn.Module, args: Any, output: Any) -> None:
            if self.core is None:
                return
            kind, read, logits = type(self.core).__name__, self.read, self.logits
            self.core, self.read, self.logits = None, None, []
            if len(logits) != 1:
                raise InputError(
                    f"{kind} of block {layer} makes {len(logits)} calls of scaled_dot_product_attention where one is "
                    "expected: its attention cannot be measured"
                )
            self.seen(layer, read, output, ObservedAttention(logits[0], logits[0].softmax(-1)))

        return hook


def _fusing_switches(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Owner, name and value of the settings that make timm and Hugging Face attend through PyTorch's function."""
    for module in model.modules():
        if getattr(module, "fused_attn", None) is False:
            yield module, "fused_attn", True
        config = getattr(module, "config", None)
        if getattr(config, "attn_logit_softcapping", None):
            raise InputError(
                f"{type(model).__name__} caps the logits of its attention, which PyTorch's fused attention does not: "
                "leave the measures of attention out"
            )
        if getattr(config, "_attn_implementation", "sdpa") != "sdpa":
            yield config, "_attn_implementation", "sdpa"
