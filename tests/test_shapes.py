import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bamboo.errors import InputError
from bamboo.shapes import (
    DECODER,
    SHAPES,
    Patches,
    Shape,
    decoder_parameters,
    default_patch_size,
    encoder_flops,
    encoder_parameters,
    find_shape,
    ladder,
    levine_optimum,
)
from bamboo.vision.decoders import SelfAttentionDecoder
from bamboo.vision.encoder import build_encoder, encode
from bamboo.vision.mae import build_mae


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PUBLISHED = {  # depth, width, heads: ViT's table (Dosovitskiy et al. 2021), and half the width at four times the depth
    "vit-base": (12, 768, 12),
    "vit-large": (24, 1024, 16),
    "vit-huge": (32, 1280, 16),
    "mid-base": (27, 512, 8),
    "bamboo-base": (48, 384, 6),
    "bamboo-large": (96, 512, 8),
    "bamboo-huge": (128, 640, 10),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_shapes_have_their_sizes(name):
    assert SHAPES[name] == Shape(*PUBLISHED[name])


@pytest.mark.parametrize("name", SHAPES)
def test_counted_parameters_are_those_of_the_instantiated_model(name):
    shape, patches = SHAPES[name], Patches.of(224, default_patch_size(name))
    with torch.device("meta"):
        encoder, decoder = build_encoder(shape, patches), SelfAttentionDecoder(shape.width, patches)
    assert count(encoder) == encoder_parameters(shape, patches)
    assert count(encoder.blocks) == shape.parameters
    assert count(decoder) == decoder_parameters(DECODER, shape, patches)


@pytest.mark.parametrize("name", ["vit-base", "bamboo-base", "vit-huge"])
@pytest.mark.parametrize("decoder", ["self", "cross", "mix"])
def test_flops_are_those_that_torch_counts(name, decoder):
    shape, patches = replace(SHAPES[name], depth=3), Patches.of(224, default_patch_size(name))
    kind = {"decoder": "self" if decoder == "self" else "cross", "mix_layers": decoder == "mix"}
    images, noise = torch.empty(1, 3, 224, 224, device="meta"), torch.empty(1, patches.count, device="meta")
    with torch.device("meta"):
        mae = build_mae(shape, 224, patches.patch_size, decoder_shape=replace(DECODER, depth=2), **kind)
    with FlopCounterMode(display=False) as full:
        encode(mae.encoder, images)
    with FlopCounterMode(display=False) as masked:
        mae(images, noise)
    assert full.get_total_flops() == encoder_flops(shape, patches)
    assert masked.get_total_flops() == mae.flops


def test_other_images_and_mlp_ratios_are_counted_too():
    shape, patches = Shape(3, 48, 4, mlp_ratio=2.5), Patches.of((32, 48), 8, in_chans=5)
    with torch.device("meta"):
        encoder = build_encoder(shape, patches)
    assert count(encoder) == encoder_parameters(shape, patches)
    assert patches.grid == (4, 6)


@pytest.mark.parametrize(("wide", "deep"), [("tiny", "tiny"), ("small", "small"), ("base", "base"), ("large", "large")])
def test_half_the_width_and_four_times_the_depth_keeps_the_matrices(wide, deep):
    wide, deep = SHAPES[f"vit-{wide}"], SHAPES[f"bamboo-{deep}"]
    assert (deep.depth, deep.width) == (4 * wide.depth, wide.width / 2)
    assert wide.depth * wide.block_matrix == deep.depth * deep.block_matrix


def test_a_shape_of_hidden_units_has_exactly_as_many():
    for width in range(1, 130):
        for hidden in range(1, 4 * width + 1):
            assert Shape.of(1, width, 1, hidden).mlp_width == hidden


def test_the_ladder_of_vit_base_runs_from_it_to_bamboo_base():
    rungs = list(ladder(SHAPES["vit-base"], head_dim=64))
    assert list(map(str, rungs)) == ["12x768", "14x704", "17x640", "21x576", "27x512", "35x448", "48x384"]
    assert all(rung.head_dim == 64 for rung in rungs)
    assert all(abs(rung.parameters / SHAPES["vit-base"].parameters - 1) < 0.02 for rung in rungs)


def test_a_ladder_of_equal_flops_has_the_depth_that_comes_nearest():
    budget = SHAPES["vit-base"].flops(197)
    for rung in ladder(SHAPES["vit-base"], equal="flops"):
        one_block = budget / Shape(1, rung.width, rung.heads).flops(197)
        assert abs(rung.depth - one_block) <= 0.5


def test_levine_optimum_solves_both_equations_and_gives_the_published_point():
    depth, width = levine_optimum(1e12)
    assert 12 * depth * width**2 == pytest.approx(1e12, rel=1e-6)
    assert width == pytest.approx(math.exp(5.039 + 0.0555 * depth), rel=1e-6)
    assert width == pytest.approx(30_000, rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shape(12, 100, 3), "3 heads do not divide the width 100"),
        (lambda: Shape(0, 96, 3), "must be positive"),
        (lambda: Patches.of(30, 4), "patch size 4 does not divide the image size 30x30"),
        (lambda: Patches.of((32, 30), 4), "32x30"),
        (lambda: find_shape("bambo-base"), "did you mean 'bamboo-base'"),
        (lambda: list(ladder(SHAPES["vit-base"], head_dim=50)), "heads of 50 do not divide the width 768"),
    ],
)
def test_what_cannot_be_says_so(make, message):
    with pytest.raises(InputError, match=message):
        make()
