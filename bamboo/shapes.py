"""Depth, width and heads of a transformer, and all that follows from them: parameters, FLOPs, equal-cost partners.

A FLOP is one addition or one multiplication, so a multiply-accumulate counts as two. Only matrix products are counted,
as `torch.utils.flop_counter` does. This module imports nothing heavy.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bamboo.errors import InputError, unknown


@dataclass(frozen=True)
class Shape:
    """The size of a stack of pre-norm or post-norm transformer blocks with biases and two LayerNorms per block.

    Args:
        depth: number of blocks.
        width: size of a token vector (`embed_dim`, `hidden_size`).
        heads: number of attention heads; must divide `width`.
        mlp_ratio: hidden units of the MLP over `width`.
    """

    depth: int
    width: int
    heads: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads, self.mlp_ratio) <= 0:
            raise InputError(f"depth, width, heads and mlp_ratio must be positive, got {self}")
        if self.width % self.heads:
            raise InputError(f"{self.heads} heads do not divide the width {self.width}")

    def __str__(self) -> str:
        return f"{self.depth}x{self.width}"

    @classmethod
    def of(cls, depth: int, width: int, heads: int, mlp_width: int) -> "Shape":
        """A shape by the hidden units of its MLP: `mlp_ratio` is the one that gives exactly as many when rounded."""
        ratio = mlp_width / width
        return cls(depth, width, heads, ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden units of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def block_matrix(self) -> int:
        """Weights in the matrices of one block: 12 width^2 at `mlp_ratio` 4."""
        return 4 * self.width**2 + 2 * self.width * self.mlp_width

    @property
    def parameters(self) -> int:
        """Parameters of all blocks, biases and LayerNorms included: depth (12 width^2 + 13 width) at `mlp_ratio` 4."""
        vectors = 4 * self.width + (self.mlp_width + self.width) + 4 * self.width
        return self.depth * (self.block_matrix + vectors)

    def flops(self, tokens: int) -> int:
        """Forward FLOPs of all blocks over one sequence: 2 x weights per token, 4 x width per pair of tokens."""
        return self.depth * self.block_flops(tokens, tokens)

    def block_flops(self, tokens: int, queries: int) -> int:
        """Forward FLOPs of a block that makes keys and values of `tokens`, and all else of `queries` alone."""
        keys_and_values = 2 * self.width**2
        per_query = 2 * (self.block_matrix - keys_and_values) + 4 * tokens * self.width
        return 2 * tokens * keys_and_values + queries * per_query


SHAPES: dict[str, Shape] = {
    "vit-tiny": Shape(12, 192, 3),
    "bamboo-tiny": Shape(48, 96, 3),
    "vit-small": Shape(12, 384, 6),
    "bamboo-small": Shape(48, 192, 3),
    "vit-base": Shape(12, 768, 12),
    "mid-base": Shape(27, 512, 8),
    "bamboo-base": Shape(48, 384, 6),
    "vit-large": Shape(24, 1024, 16),
    "bamboo-large": Shape(96, 512, 8),
    "vit-huge": Shape(32, 1280, 16),
    "bamboo-huge": Shape(128, 640, 10),
}
"""The named shapes. The Base pair is triangulated from public configurations, Large and Huge follow from the rule
"half the width, four times the depth": the paper's own table of shapes could not be obtained."""

DECODER = Shape(8, 512, 16)
"""The decoder of the MAE paper: 8 blocks, 512 wide, 16 heads."""


def find_shape(shape: str | Shape | Mapping[str, Any]) -> Shape:
    """A shape by its name, by its numbers, or itself; raises `InputError` for a name or numbers of none."""
    if isinstance(shape, Shape):
        return shape
    if isinstance(shape, Mapping):
        try:
            return Shape(**shape)
        except TypeError as error:
            numbers = "depth, width, heads and, if it is not 4, mlp_ratio"
            raise InputError(f"a shape is a name or the numbers {numbers}, got {dict(shape)}") from error
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    return SHAPES[shape]


def default_patch_size(name: str) -> int:
    """Side of a square patch in pixels: 14 for the Huge shapes, else 16 (He et al. 2022)."""
    return 14 if name.endswith("-huge") else 16


@dataclass(frozen=True)
class Patches:
    """An image, (height, width) in pixels, cut into a grid of square patches; the side of a patch must divide both."""

    image_size: tuple[int, int]
    patch_size: int
    in_chans: int = 3

    def __post_init__(self) -> None:
        if min(*self.image_size, self.patch_size, self.in_chans) <= 0:
            raise InputError(f"image size, patch size and channels must be positive, got {self}")
        if any(side % self.patch_size for side in self.image_size):
            height, width = self.image_size
            raise InputError(f"patch size {self.patch_size} does not divide the image size {height}x{width}")

    @classmethod
    def of(cls, image_size: int | tuple[int, int], patch_size: int, in_chans: int = 3) -> "Patches":
        """Patches of an image given by its side, or by (height, width)."""
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        return cls(size, patch_size, in_chans)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def count(self) -> int:
        """Number of patches in an image."""
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """Numbers in one patch: patch_size^2 x in_chans."""
        return self.patch_size**2 * self.in_chans

    def visible(self, mask_ratio: float) -> int:
        """Patches left visible under a mask: int(count x (1 - mask_ratio)), as in He et al. 2022."""
        return int(self.count * (1 - mask_ratio))


def encoder_parameters(shape: Shape, patches: Patches) -> int:
    """Parameters of a ViT without a head: patch embedding, class token, (fixed) positions, blocks, final norm."""
    embedding = shape.width * (patches.values + 1 + 1 + patches.count + 1)
    return embedding + shape.parameters + 2 * shape.width


def encoder_flops(
    shape: Shape, patches: Patches, tokens: int | None = None, kv_ratio: int = 1, kv_blocks: int = 0
) -> int:
    """Forward FLOPs of the encoder for one image, with `tokens` visible patches (all by default) and a class token.

    In `kv_blocks` of its blocks keys and values are compressed by `kv_ratio`, see `bamboo.vision.kv_compression`.
    """
    tokens = patches.count if tokens is None else tokens
    saved = kv_blocks * 4 * shape.width * (tokens + 1) * (tokens - tokens // kv_ratio**2)
    return 2 * tokens * patches.values * shape.width + shape.flops(tokens + 1) - saved


def decoder_parameters(shape: Shape, encoder: Shape, patches: Patches) -> int:
    """Parameters of the self-attention decoder: embedding, mask token, (fixed) positions, blocks, norm, prediction."""
    embedding = shape.width * (encoder.width + 1 + 1 + patches.count)
    return embedding + shape.parameters + 2 * shape.width + (shape.width + 1) * patches.values


def decoder_flops(
    shape: Shape, encoder: Shape, patches: Patches, visible: int, predicted: int, cross: bool = False, mix: bool = False
) -> int:
    """Forward FLOPs of a decoder for one image.

    In the self-attention decoder the last block computes the predicted patches alone; in the cross-attention one
    (`cross`) every block does, and with `mix` each reads its own embedded mix of all encoder layers.
    """
    context = visible + 1
    if cross:
        blocks = shape.depth * shape.block_flops(context, predicted)
    else:
        tokens = context + predicted
        blocks = (shape.depth - 1) * shape.block_flops(tokens, tokens) + shape.block_flops(tokens, predicted)
    embedding, prediction = 2 * context * encoder.width * shape.width, 2 * predicted * shape.width * patches.values
    if mix:
        embedding = shape.depth * (embedding + 2 * encoder.depth * context * encoder.width)
    return embedding + blocks + prediction


def ladder(
    budget: Shape, head_dim: int = 64, equal: Literal["parameters", "flops"] = "parameters", tokens: int = 197
) -> Iterator[Shape]:
    """Shapes as costly as `budget`, from its own width down to half of it, in steps of one head of `head_dim`.

    Each has the depth that comes nearest to the budget: equal parameters, or equal forward FLOPs over `tokens` tokens.
    """
    if head_dim <= 0 or budget.width % head_dim:
        raise InputError(f"heads of {head_dim} do not divide the width {budget.width} of the budget")

    def cost(shape: Shape) -> int:
        return shape.parameters if equal == "parameters" else shape.flops(tokens)

    for heads in range(budget.width // head_dim, math.ceil(budget.width / 2 / head_dim) - 1, -1):
        block = Shape(1, heads * head_dim, heads, budget.mlp_ratio)
        yield Shape(max(1, round(cost(budget) / cost(block))), block.width, heads, budget.mlp_ratio)


def levine_optimum(parameters: float) -> tuple[float, float]:
    """Depth and width that the depth-width law of Levine et al. 2020 puts at a number of block parameters.

    Solves 12 depth width^2 = parameters on width = exp(5.039 + 0.0555 depth), a fit to autoregressive language models.
    Its constants are quoted second-hand; they reproduce the published point of a width near 30,000 at 10^12 parameters.
    """

    def width(depth: float) -> float:
        return math.exp(5.039 + 0.0555 * depth)

    low, high = 0.0, 1000.0
    for _ in range(60):
        depth = (low + high) / 2
        low, high = (depth, high) if 12 * depth * width(depth) ** 2 < parameters else (low, depth)
    return low, width(low)
