"""Compiled blocks: one graph for all blocks that are built alike, in training alone."""

from collections.abc import Iterable
from typing import Any

from torch import nn


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
