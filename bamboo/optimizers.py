"""Optimizers of a recipe, and the groups of parameters that they train."""

import re
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lars, param_groups_layer_decay

from bamboo.came import CAME
from bamboo.errors import InputError
from bamboo.recipes import Recipe


def check_layer_decay(layer_decay: float, written_for: int) -> None:
    """Raises `InputError` where `layer_decay` does not lie between 0 and 1, or it is written for no depth."""
    if not 0 < layer_decay <= 1 or written_for < 1:
        raise InputError(
            f"layer_decay must lie between 0 and 1, and the depth be positive: {layer_decay}, {written_for}"
        )


def layer_decay_groups(
    encoder: VisionTransformer, layer_decay: float, weight_decay: float, written_for: int = 12
) -> list[dict[str, Any]]:
    """Parameter groups of a ViT with its head whose `lr_scale` falls from the head, 1, down to the embedding.

    Layer l of a network of `depth` blocks (0 is the embedding) gets the scale that the layer at the same relative depth
    has in a network of `written_for` blocks, layer_decay ** (1 + written_for (1 - l / depth)). At that depth it is the
    published rule, layer_decay ** (depth + 1 - l) (Bao et al. 2022, He et al. 2022); at any depth the total from head
    to embedding is the same, and from block to block the factor is layer_decay ** (written_for / depth).

    Weight decay is that of matrices; vectors, biases, class token and positions have none.
    """
    check_layer_decay(layer_decay, written_for)
    step = written_for / len(encoder.blocks)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        encoder, weight_decay, encoder.no_weight_decay(), layer_decay=layer_decay**step
    )
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    for group in groups:
        group["layer"] = _layer(names[group["params"][0]])
        if group["layer"] != "head":  # from the head to the last block it is a whole step at every depth
            group["lr_scale"] *= layer_decay ** (1 - step)
    return groups


def _layer(name: str) -> str:
    """What to call the layer of a timm ViT that a parameter belongs to; a final norm goes with the last block."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return f"block {block[1]}"
    return "embedding" if re.match(r"cls_token|reg_token|pos_embed|patch_embed|norm_pre", name) else "head"


def build_optimizer(groups: list[dict[str, Any]], recipe: Recipe, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer of a recipe over groups of parameters; the learning rate is set before every step."""
    if recipe.optimizer == "adamw":
        beta1, beta2 = recipe.betas
        return torch.optim.AdamW(groups, lr=recipe.base_lr, betas=(beta1, beta2), eps=recipe.eps, fused=fused)
    if recipe.optimizer == "came":
        beta1, beta2, beta3 = (*recipe.betas, 0.9999)[:3]
        return CAME(groups, lr=recipe.base_lr, betas=(beta1, beta2, beta3))
    split = [
        {**group, "params": chosen, "always_adapt": matrices}
        for group in groups
        for matrices in (True, False)
        if (chosen := [parameter for parameter in group["params"] if (parameter.ndim > 1) == matrices])
    ]
    optimizer: torch.optim.Optimizer = Lars(split, lr=recipe.base_lr, momentum=recipe.betas[0], trust_coeff=0.001)
    return optimizer


def unscales(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer takes the scale of fp16's gradients away itself, and can leave a step out: a fused one."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
