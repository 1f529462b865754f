"""Tiny models of every kind that can be profiled, randomly initialised, with an input for each."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers

DEPTH, WIDTH = 3, 32


def timm_vit(**kwargs: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4, "num_classes": 5}
    return VisionTransformer(**{**sizes, **kwargs}).eval()


def timm_distilled() -> nn.Module:
    return timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=16, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=4
    ).eval()


def timm_eva() -> nn.Module:
    return timm.create_model(
        "eva02_tiny_patch14_224", img_size=16, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=4
    ).eval()


def torchvision_vit() -> nn.Module:
    return TorchvisionViT(16, 4, DEPTH, 4, WIDTH, 64, num_classes=5).eval()


def hugging(kind: str, **kwargs: Any) -> nn.Module:
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    }
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **kwargs})
    return getattr(transformers, f"{kind}Model")(config).eval()


image = partial(hugging, image_size=16, patch_size=4)
text = partial(hugging, vocab_size=60, max_position_embeddings=40, pad_token_id=0)

VISION: dict[str, Callable[[], nn.Module]] = {
    "timm with class token": timm_vit,
    "timm with registers": partial(timm_vit, reg_tokens=4, no_embed_class=True),
    "timm without class token": partial(timm_vit, class_token=False, global_pool="avg", fc_norm=False),
    "timm with layer scale": partial(timm_vit, init_values=0.5),
    "timm post-norm branches": partial(timm_vit, block_fn=timm.models.vision_transformer.ResPostBlock),
    "timm EVA": timm_eva,
    "timm distilled DeiT": timm_distilled,
    "torchvision ViT": torchvision_vit,
    "HF ViT": partial(image, "ViT"),
    "HF DeiT": partial(image, "DeiT"),
    "HF DINOv2 with registers": partial(image, "Dinov2WithRegisters", mlp_ratio=2),
}
PREFIX = {
    "timm with registers": (True, 4),
    "timm without class token": (False, 0),
    "timm distilled DeiT": (True, 1),
    "HF DeiT": (True, 1),
    "HF DINOv2 with registers": (True, 4),
}
CAUSAL = {"Llama": "Llama", "Mistral": "Mistral", "Qwen 3": "Qwen3", "Gemma 3": "Gemma3Text", "OLMo 2": "Olmo2"}
NORMED_BRANCHES = ("timm post-norm branches", "Gemma 3", "OLMo 2")
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
TEXT: dict[str, Callable[[], nn.Module]] = {
    "BERT": partial(text, "Bert"),
    "RoBERTa": partial(text, "Roberta"),
    "pre-norm RoBERTa": partial(text, "RobertaPreLayerNorm"),
    "ModernBERT": partial(text, "ModernBert", local_attention=8, global_attn_every_n_layers=2),
    **{name: partial(text, kind, **GROUPED) for name, kind in CAUSAL.items()},
}


def images(batch: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def sentences(lengths: tuple[int, ...] = (12, 5, 9), seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 60, mask.shape, generator=generator).masked_fill(~mask, 0)
    ids[:, 0] = 2
    return {"input_ids": ids, "attention_mask": mask.long()}
