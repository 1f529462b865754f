"""Look at a model's residual stream, branches and attention while it runs, keeping none of it."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bamboo.errors import InputError

from .architectures import Stack, find_branches, find_stack
from .attention_maps import ObservedAttention, in_backward, observe_attention

Position = Literal["stream", "norm", "attention", "mlp", "maps"]


@dataclass(frozen=True)
class State:
    """What a reducer is handed, detached; keep no reference to its tensors, or memory grows with depth.

    Args:
        layer: 0 after the embedding, i after block i.
        position: `stream` is the residual stream, `norm` what the final norm makes of it, `attention` and `mlp` what
            the two branches of a block add to it, `maps` what attention did.
        tokens: (batch, tokens, width); at `maps` what the heads gave together, before any layer scale.
        before: (batch, tokens, width); at a branch the stream that it is added to, at `maps` what attention read.
        attention: at `maps` alone: logits and probabilities (batch, heads, tokens, keys) in fp32.
    """

    layer: int
    position: Position
    tokens: Tensor
    before: Tensor | None = None
    attention: ObservedAttention | None = None


@contextmanager
def capture(
    model: nn.Module,
    reducer: Callable[[State], object],
    blocks: str | None = None,
    branches: bool = False,
    attention: bool = False,
) -> Iterator[Stack]:
    """Within the context, hand each state of every forward pass to a reducer as it appears.

    The stream is taken after the embedding (that is, as the first block receives it) and after each block, and after
    the final norm where there is one. In a post-norm model (BERT, RoBERTa) a block ends with a norm, so its state is
    what that norm gives, as in `output_hidden_states`, and there is no separate final norm. The model computes what
    it always does: the outputs are the same, its mode, gradients and random stream are not touched, and everything is
    as before afterwards, also after an exception. A block that gradient checkpointing runs again in the backward pass
    is not seen twice. Compiled models run eagerly inside.

    Args:
        model: a timm, Hugging Face or torchvision model, or any module with a list of blocks.
        reducer: is called with every state, without gradients.
        blocks: path of the list of blocks, where it cannot be found.
        branches: also hand over what attention and MLP add to the stream.
        attention: also hand over attention maps, which are computed beside the fused kernel for that purpose.

    Raises:
        InputError: where the blocks or their parts cannot be found.
    """
    stack = find_stack(model, blocks)
    tap = _Tap(stack, reducer)
    with ExitStack() as undo:
        if any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in model.modules()):
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        for layer, block in enumerate(stack.blocks, start=1):
            for handle in tap.hooks(layer, block, branches):
                undo.callback(handle.remove)
        if stack.norm is not None:
            undo.callback(stack.norm.register_forward_hook(tap.leave_norm).remove)
        if attention:
            undo.enter_context(observe_attention(model, stack.blocks, tap.see_attention))
        yield stack


class _Tap:
    """Turns calls of hooks into states.

    While a block runs, `before` is the stream that its next branch is added to, and `middle`, in a pre-norm block, the
    stream between its branches. `last` refers to what the last block gave.
    """

    def __init__(self, stack: Stack, reducer: Callable[[State], object]):
        self.stack, self.reducer = stack, reducer
        self.layer = 0
        self.before: Tensor | None = None
        self.middle: Tensor | None = None
        self.last: Callable[[], Tensor | None] = lambda: None

    def hooks(self, layer: int, block: nn.Module, branches: bool) -> Iterator[Any]:
        """Register the hooks of one block; one of an unknown make shows no branches."""
        yield block.register_forward_pre_hook(self.enter_block(layer), with_kwargs=True)
        middle, last = find_branches(block) if branches else (None, None)
        if middle is not None and last is not None:
            yield middle.register_forward_hook(self.leave_post_norm("attention"))
            yield last.register_forward_hook(self.leave_post_norm("mlp"))
        elif middle is not None:
            yield middle.register_forward_pre_hook(self.between_branches)
        yield block.register_forward_hook(self.leave_block)

    def hand(self, position: Position, tokens: Tensor, *more: Any) -> None:
        """Give the reducer a state of the current layer."""
        if not in_backward():
            with torch.no_grad():
                self.reducer(State(self.layer, position, tokens, *more))

    def enter_block(self, layer: int) -> Callable[..., None]:
        """The stream as block `layer` receives it, which before the first is the embedding."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.layer = layer - 1
            self.before, self.middle = self.tokens_in(args or tuple(kwargs.values())), None
            if layer == 1:
                self.hand("stream", self.before)
            self.layer = layer

        return hook

    def between_branches(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """In a pre-norm block the second norm receives the stream that attention was added to."""
        middle = self.tokens_in(args)
        if self.before is None or middle.data_ptr() == self.before.data_ptr():
            return  # the branches run side by side, on what the block received
        self.hand("attention", middle - self.before, self.before)
        self.middle = middle

    def leave_post_norm(self, branch: Position) -> Callable[..., None]:
        """In a post-norm block each branch ends with a norm of the sum of stream and branch."""

        def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.before is not None:
                self.hand(branch, self.tokens_in(args) - self.before, self.before)
                self.before = output.detach()

        return hook

    def leave_block(self, block: nn.Module, args: Any, output: Any) -> None:
        """What a block gives is the stream after it; in a pre-norm block the MLP is what has come since the middle."""
        tokens = self.tokens_in(output)
        if self.middle is not None:
            self.hand("mlp", tokens - self.middle, self.middle)
        self.before = self.middle = None
        self.hand("stream", tokens)
        if self.layer == len(self.stack.blocks):
            # A norm may also be applied to earlier layers (a decoder that reads them all): the last state tells.
            self.last = weakref.ref(output[0] if isinstance(output, tuple) else output)

    def leave_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The final norm, where it was applied to what the last block gave."""
        last = self.last()
        if last is not None and args and args[0] is last:
            self.hand("norm", self.tokens_in(output))

    def see_attention(self, layer: int, read: Any, output: Any, attention: ObservedAttention) -> None:
        """What attention read, gave and computed."""
        self.hand("maps", self.tokens_in(output), self.tokens_in(read), attention)

    def tokens_in(self, value: Any) -> Tensor:
        """The token matrix among what a module was given or gave."""
        tokens = value[0] if isinstance(value, tuple) else value
        if not isinstance(tokens, Tensor) or tokens.dim() != 3:
            kind = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise InputError(f"block {self.layer} handles {kind}, expected a tensor (batch, tokens, width)")
        return tokens.detach()
