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
from .explicit_attention import ObservedAttention, observe_attention

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
        attention: the result. At `maps` alone: logits and probabilities (batch, heads, tokens, tokens) in fp32.
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
    with ExitStack() as hooks:
        if _is_compiled(model):
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
        for layer, block in enumerate(stack.blocks, start=1):
            hooks.callback(block.register_forward_pre_hook(tap.enter_block(layer), with_kwargs=True).remove)
            if branches:
                for handle in tap.watch_branches(layer, block):
                    hooks.callback(handle.remove)
            hooks.callback(block.register_forward_hook(tap.leave_block(layer)).remove)
        if stack.norm is not None:
            hooks.callback(stack.norm.register_forward_hook(tap.leave_norm).remove)
        if attention:
            hooks.enter_context(observe_attention(model, stack.blocks, tap.see_attention))
        yield stack


class _Tap:
    """Turns hooks into states. Holds the stream before and between the branches of one block while it runs."""

    def __init__(self, stack: Stack, reducer: Callable[[State], object]):
        self.stack, self.reducer = stack, reducer
        self.before: Tensor | None = None
        self.middle: Tensor | None = None
        self.last: Callable[[], Tensor | None] = lambda: None

    def hand(self, state: State) -> None:
        with torch.no_grad():
            self.reducer(state)

    def enter_block(self, layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if in_backward():
                return
            tokens = _tokens(args or tuple(kwargs.values()), f"block {layer}")
            self.before, self.middle = tokens, None
            if layer == 1:
                self.hand(State(0, "stream", tokens))

        return hook

    def leave_block(self, layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any, output: Any) -> None:
            if in_backward():
                return
            tokens = _tokens(output, f"block {layer}")
            if self.middle is not None:
                self.hand(State(layer, "mlp", tokens - self.middle, self.middle))
            self.before = self.middle = None
            self.hand(State(layer, "stream", tokens))
            if layer == len(self.stack.blocks):
                # A norm may also be applied to earlier layers (a decoder that reads them all): the last state tells.
                self.last = weakref.ref(output[0] if isinstance(output, tuple) else output)

        return hook

    def leave_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        last = self.last()
        if not in_backward() and last is not None and args and args[0] is last:
            self.hand(State(len(self.stack.blocks), "norm", _tokens(output, "the final norm")))

    def watch_branches(self, layer: int, block: nn.Module) -> Iterator[Any]:
        """Register hooks on the norms that separate a block's branches; a block of another make shows no branches."""
        found = find_branches(block)
        if found is None:
            return
        if found.last is None:
            yield found.middle.register_forward_pre_hook(self.between(layer))
        else:
            yield found.middle.register_forward_hook(self.normed_attention(layer))
            yield found.last.register_forward_hook(self.normed_mlp(layer))

    def between(self, layer: int) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if self.before is None or in_backward():
                return
            middle = _tokens(args, f"block {layer}")
            if middle.data_ptr() == self.before.data_ptr():
                return  # the branches run side by side, on what the block received
            self.middle = middle
            self.hand(State(layer, "attention", middle - self.before, self.before))

        return hook

    def normed_attention(self, layer: int) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.before is not None and not in_backward():
                self.hand(State(layer, "attention", _tokens(args, f"block {layer}") - self.before, self.before))
                self.before = output.detach()

        return hook

    def normed_mlp(self, layer: int) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.before is not None and not in_backward():
                self.hand(State(layer, "mlp", _tokens(args, f"block {layer}") - self.before, self.before))

        return hook

    def see_attention(self, layer: int, before: Any, after: Any, seen: ObservedAttention) -> None:
        tokens, read = _tokens(after, "attention"), _tokens(before, "attention")
        self.hand(State(layer, "maps", tokens, read, seen))


def in_backward() -> bool:
    """Whether autograd is running, so that a forward pass is a repetition for gradient checkpointing."""
    return bool(torch._C._current_graph_task_id() != -1)


def _tokens(value: Any, where: str) -> Tensor:
    """The token matrix among what a module was given or gave."""
    tokens = value[0] if isinstance(value, tuple) else value
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"{where} handles {found}, expected a tensor (batch, tokens, width)")
    return tokens.detach()


def _is_compiled(model: nn.Module) -> bool:
    return any(module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in model.modules())
