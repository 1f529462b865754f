"""Faster steps on a GPU: compiled blocks, or the whole pass as a CUDA graph; in training alone."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Compile = bool | Literal["graphs"]
"""Whether to compile blocks; or to launch a pass as a CUDA graph, for models whose kernels take longer to launch than
to run, as those of many narrow blocks at small batches."""


def compile_in_training(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile blocks in place, which leaves the names of their weights alone; in evaluation they run as they are.

    All blocks of one class share their graphs, of which there may be few (`torch._dynamo.config.recompile_limit`):
    training needs one for each number of tokens. Shapes are fixed, for those of one stack differ from those of another,
    and would otherwise make all of them dynamic. Evaluation has other numbers of tokens and a smaller last batch.
    """
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
        block._compiled_call_impl = _InTraining(block)


class _InTraining:
    """Stands where `nn.Module.compile` puts the compiled call; like it, left out of copies of the module."""

    def __init__(self, block: nn.Module):
        self.block = block
        self.compiled: Any = block._compiled_call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.compiled if self.block.training else self.block._call_impl
        return call(*args, **kwargs)


class Graphed:
    """A pass in training, captured at its second call as a CUDA graph, backward pass included, and then replayed.

    The first call runs as it is, for what is measured of the first step. Losses and gradients are the same.

    Args:
        function: of tensors on the GPU, always of these shapes, to a tensor or a named tuple of tensors. It must not
            wait for the GPU or change buffers.
        module: holds all parameters that the function reads.
    """

    def __init__(self, function: Callable[..., Any], module: nn.Module):
        self.pass_ = nn.Module()  # which the captured pass takes its parameters from, and gives another `forward`
        self.pass_.module = module
        self.pass_.forward = function
        self.calls = 0

    def __call__(self, *tensors: Tensor) -> Any:
        """What the function gives for these tensors."""
        self.calls += 1
        if self.calls == 2:
            state = torch.cuda.get_rng_state(tensors[0].device)  # so that dropout is that of a run without a capture
            samples = tuple(tensor.clone() for tensor in tensors)
            torch.cuda.make_graphed_callables(self.pass_, samples, allow_unused_input=True)
            torch.cuda.set_rng_state(state, tensors[0].device)
        return self.pass_.forward(*tensors)
