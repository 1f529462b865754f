"""See the attention maps that a fused kernel never writes down."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bamboo.errors import InputError
from bamboo.text.positions import IMPLEMENTATION
from bamboo.vision.attn_scale import AttnScale

from .architectures import find_attention
from .measures.masking import in_fp32

HIDDEN = torch.finfo(torch.float16).min / 2


@dataclass(frozen=True)
class ObservedAttention:
    """What softmax was taken of, scale and masks included, and its result: (batch, heads, tokens, tokens) in fp32.

    Where keys and values are compressed there are fewer keys: (batch, heads, tokens, keys).
    Under `AttnScale` the maps are those that its tokens are mixed by, where a number may be negative.
    """

    logits: Tensor
    probabilities: Tensor

    @property
    def visible(self) -> Tensor:
        """True where a query may read a key: masks put minus infinity, or a type's lowest number, in place of it."""
        return self.logits > HIDDEN


Observer = Callable[[int, Any, Any, ObservedAttention], None]
"""Is called with the layer, what its attention read, what its heads gave together, and the maps."""


@contextmanager
def observe_attention(model: nn.Module, blocks: Sequence[nn.Module], observer: Observer) -> Iterator[None]:
    """Within the context, call the observer after the attention of each block, the first of which is layer 1.

    timm, Hugging Face and torchvision all attend through `scaled_dot_product_attention`, which is told to do so where
    it is not the default and replaced by one that computes the maps beside calling the fused kernel. So the outputs are
    those of the fused kernel, and logits are seen, which no library hands out. All is put back at the end.

    Raises:
        InputError: where a block has no attention of a known name, or attends in another way.
    """
    watch = _Watch(observer, F.scaled_dot_product_attention)
    with ExitStack() as undo:
        undo.callback(setattr, F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
        F.scaled_dot_product_attention = watch.attend  # type: ignore[assignment]
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


def in_backward() -> bool:
    """Whether autograd is running, so that a forward pass is a repetition for gradient checkpointing."""
    return bool(torch._C._current_graph_task_id() != -1)


class _Watch:
    """Knows which module attends at the moment, what it has read, and the logits of its calls of the kernel."""

    def __init__(self, observer: Observer, kernel: Callable[..., Tensor]):
        self.observer, self.kernel = observer, kernel
        self.core: nn.Module | None = None
        self.read: Any = None
        self.logits: list[Tensor] = []

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """In place of `scaled_dot_product_attention`: keep the logits, and call the kernel."""
        if self.core is not None:
            with torch.no_grad():
                self.logits.append(explicit_logits(query, key, attn_mask, is_causal, scale))
        return self.kernel(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of any block."""
        if not in_backward():
            self.core, self.read, self.logits = core, args or tuple(kwargs.values()), []

    def leave(self, layer: int) -> Callable[..., None]:
        """After the attention of block `layer`."""

        def hook(out: nn.Module, args: Any, output: Any) -> None:
            if self.core is None:
                return
            core, read, logits = self.core, self.read, self.logits
            kind = type(core).__name__
            self.core, self.read, self.logits = None, None, []
            if len(logits) != 1:
                raise InputError(
                    f"{kind} of block {layer} makes {len(logits)} calls of scaled_dot_product_attention where one is "
                    "expected: its attention cannot be measured, so leave its measures out"
                )
            maps = logits[0].softmax(-1)
            maps = core.rescale(maps).detach() if isinstance(core, AttnScale) else maps
            self.observer(layer, read, output, ObservedAttention(logits[0], maps))

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
        if getattr(config, "_attn_implementation", "sdpa") not in ("sdpa", IMPLEMENTATION):
            yield config, "_attn_implementation", "sdpa"
