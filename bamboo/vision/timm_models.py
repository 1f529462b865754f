"""Registers the named shapes with timm: `timm.create_model("bamboo_base_patch16_224")` after `import bamboo.vision`."""

from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from bamboo.shapes import SHAPES, default_patch_size
from bamboo.vision.pixels import IMAGENET_MEAN, IMAGENET_STD

PRETRAINED_CFG = {
    "num_classes": 0,  # what pretraining yields has no head; ask for one with num_classes=...
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.875,  # resize to 256, crop 224, as in He et al. 2022
    "interpolation": "bicubic",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs: dict[str, Any] = {}  # the name under which timm looks for them


def timm_name(shape: str) -> str:
    """timm's name of a named shape: `bamboo-base` is `bamboo_base_patch16_224`."""
    return f"{shape.replace('-', '_')}_patch{default_patch_size(shape)}_224"


def _register(name: str) -> None:
    shape, model_name = SHAPES[name], timm_name(name)
    sizes: dict[str, Any] = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
    sizes["patch_size"] = default_patch_size(name)

    def create(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        model = build_model_with_cfg(
            VisionTransformer, model_name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **{**sizes, **kwargs}
        )
        return cast(VisionTransformer, model)

    create.__name__ = model_name
    create.__doc__ = f"ViT of {shape.depth} blocks, {shape.width} wide, {shape.heads} heads."
    globals()[model_name] = create
    default_cfgs.update(generate_default_cfgs({model_name: PRETRAINED_CFG}))
    register_model(create)


for _name in SHAPES:
    if not _name.startswith("vit-"):  # timm has these
        _register(_name)
