"""The learning rate of every layer is the published one at the published depth, and has the same total at any other."""

import pytest
import torch

from bamboo.errors import InputError
from bamboo.optimizers import build_optimizer, layer_decay_groups
from bamboo.recipes import Recipe
from bamboo.shapes import Patches, Shape
from bamboo.vision.encoder import build_encoder
from bamboo.vision.heads import attach_head


def scales(depth: int, layer_decay: float = 0.65, written_for: int = 12) -> dict[str, float]:
    encoder = attach_head(build_encoder(Shape(depth, 16, 2), Patches.of(8, 4)), 5).requires_grad_(True)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    groups = layer_decay_groups(encoder, layer_decay, 0.05, written_for)
    found = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert found.keys() == dict(encoder.named_parameters()).keys()
    return found


def layer_of(name: str, depth: int) -> int:
    """The reference numbering: 0 is the embedding, i + 1 is block i, depth + 1 the head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name in ("cls_token", "pos_embed") or name.startswith("patch_embed") else depth + 1


@pytest.mark.parametrize(("depth", "layer_decay"), [(12, 0.65), (24, 0.75), (32, 0.75)])
def test_at_the_published_depths_every_parameter_has_the_published_scale(depth, layer_decay):
    for name, scale in scales(depth, layer_decay, written_for=depth).items():
        assert scale == pytest.approx(layer_decay ** (depth + 1 - layer_of(name, depth)), rel=1e-9), name


def test_at_depth_48_the_total_is_that_of_depth_12_and_the_head_is_not_scaled():
    shallow, deep = scales(12), scales(48)
    assert deep["pos_embed"] == pytest.approx(shallow["pos_embed"]) == pytest.approx(0.65**13)
    assert deep["blocks.47.mlp.fc2.weight"] == pytest.approx(shallow["blocks.11.mlp.fc2.weight"])
    assert deep["blocks.0.norm1.weight"] / deep["blocks.1.norm1.weight"] == pytest.approx(0.65 ** (12 / 48))
    assert deep["head.weight"] == deep["fc_norm.bias"] == shallow["head.bias"] == 1


def test_the_layer_at_the_same_relative_depth_has_the_same_rate():
    shallow, deep = scales(12), scales(48)
    for block in range(12):
        name = "blocks.{}.attn.qkv.weight".format
        assert deep[name(4 * block + 3)] == pytest.approx(shallow[name(block)])


def test_vectors_positions_and_class_token_are_not_decayed():
    encoder = attach_head(build_encoder(Shape(2, 16, 2), Patches.of(8, 4)), 5).requires_grad_(True)
    decay = {p: group["weight_decay"] for group in layer_decay_groups(encoder, 0.65, 0.05) for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        exempt = parameter.ndim == 1 or name in ("cls_token", "pos_embed")
        assert decay[parameter] == (0 if exempt else 0.05), name


@pytest.mark.parametrize("layer_decay", [0, -1, 1.1])
def test_a_layer_decay_that_cannot_be_is_one_line(layer_decay):
    encoder = attach_head(build_encoder(Shape(2, 16, 2), Patches.of(8, 4)), 5)
    with pytest.raises(InputError, match="layer_decay must lie between 0 and 1"):
        layer_decay_groups(encoder, layer_decay, 0.05)


def test_lars_is_the_published_one():
    """One step by hand: matrices move by lr x trust x |w| / |g| x g, biases by lr x g; momentum on top."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    recipe = Recipe(base_lr=0.5, weight_decay=0.0, betas=(0.9, 0.999), optimizer="lars")
    optimizer = build_optimizer([{"params": list(layer.parameters()), "weight_decay": 0.0}], recipe)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().sum().backward()
        update = layer.weight.grad * 0.001 * weight.norm() / layer.weight.grad.norm()
        velocity = [0.9 * velocity[0] + update, 0.9 * velocity[1] + layer.bias.grad]
        weight, bias = weight - 0.5 * velocity[0], bias - 0.5 * velocity[1]
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight)
    torch.testing.assert_close(layer.bias.detach(), bias)
