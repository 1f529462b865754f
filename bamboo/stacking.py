"""Depth out of weights: the blocks of an encoder stacked into a deeper one of the same width."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal, get_args

from bamboo.errors import InputError, unknown
from bamboo.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from torch import Tensor

Stack = Literal["repeat", "identity"]


def origins(depth: int, deeper: int, stack: Stack) -> list[tuple[int, bool]]:
    """Which of `depth` blocks each of `deeper` blocks is a copy of, and whether it is one that changes nothing.

    - `repeat`: b1 .. bL b1 .. bL, progressive stacking (Gong et al. 2019).
    - `identity`: each block is followed by its copies, b1 b1' b2 b2' .. bL bL', whose branches end in zero, so that the
      function is kept, as in Net2Net (Chen et al. 2016). A copy learns from the first step on: the matrix that ends a
      branch has a gradient at once, and those before it as soon as that matrix is no longer zero.

    Raises:
        InputError: for another rule, or where `deeper` is no multiple of `depth`.
    """
    if stack not in get_args(Stack):
        raise unknown("stack", stack, get_args(Stack))
    times, rest = divmod(deeper, depth)
    if rest or times < 2:
        raise InputError(
            f"stack repeats all {depth} blocks, to a depth of {2 * depth}, {3 * depth} and so on, and "
            f"model.init_args.shape asks for {deeper}"
        )
    if stack == "repeat":
        return [(number % depth, False) for number in range(deeper)]
    return [(number // times, number % times > 0) for number in range(deeper)]


def stack_blocks(
    tensors: Mapping[str, "Tensor"], blocks: str, ends: Sequence[str], deeper: int, stack: Stack
) -> dict[str, "Tensor"]:
    """The weights of an encoder of `deeper` blocks by the rule `stack`, see `origins`.

    Args:
        tensors: weights by name.
        blocks: what stands before the number of a block in its weights' names, such as `encoder.blocks.`.
        ends: beginnings of the names, within a block, of the weights that its two branches end with.
        deeper: number of blocks.
        stack: `repeat` or `identity`.
    """
    by_block: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.match(rf"{re.escape(blocks)}(\d+)\.(.+)", name):
            by_block.setdefault(int(match[1]), {})[match[2]] = tensor
    stacked = {name: tensor for name, tensor in tensors.items() if not re.match(rf"{re.escape(blocks)}\d+\.", name)}
    for number, (origin, keeps) in enumerate(origins(len(by_block), deeper, stack)):
        for name, tensor in by_block[origin].items():
            zero = keeps and name.startswith(tuple(ends))
            stacked[f"{blocks}{number}.{name}"] = tensor.new_zeros(tensor.shape) if zero else tensor
    return stacked


def what_fits(own: Shape, wanted: Shape) -> str:
    """What to type where a source is of shape `own` and the configuration asks for another one."""
    numbers = {name: value for name, value in asdict(own).items() if (name, value) != ("mlp_ratio", 4.0)}
    named = next((name for name, shape in SHAPES.items() if shape == own), f"'{json.dumps(numbers)}'")
    fits = f"give --model.init_args.shape {named}"
    if replace(own, depth=wanted.depth) == wanted and wanted.depth % own.depth == 0:
        fits += ", or --model.init_args.stack identity (or repeat) to make the deeper one of its blocks"
    return fits
