"""Models come in from every kind of source and go out in every format without a number changed."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from timm.models.vision_transformer import Block
from torch import nn
from transformers import (
    AutoModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from bamboo.checkpoints import export, load_encoder, load_mae, pixel_scale, read_file
from bamboo.checkpoints.loading import Report
from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pixels import IMAGENET_MEAN

SQUARE = {
    "shape": {"depth": 3, "width": 48, "heads": 4, "mlp_ratio": 4.0},
    "image_size": 32,
    "patch_size": 8,
    "decoder_shape": {"depth": 2, "width": 32, "heads": 4, "mlp_ratio": 2.0},
}
WIDE = {**SQUARE, "image_size": [16, 24], "in_chans": 1, "norm_pix": False}


@torch.no_grad()
def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.endswith(("pos_embed", "position_embeddings")):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def plain(arguments: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}


def bamboo_checkpoint(path: Path, arguments: dict) -> tuple[Path, MaskedAutoencoder]:
    mae = randomised(build_mae(**arguments))
    others = {"recipe": {"lr": 1.0}, "mean": None, "std": None, "_instantiator": "x", "_class_path": "y"}
    weights = {f"mae.{key}": tensor for key, tensor in mae.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {**arguments, **others}, "epoch": 3}, path)
    return path, mae


def images(arguments: dict, count: int = 2) -> torch.Tensor:
    size = arguments.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, arguments.get("in_chans", 3), height, width, generator=torch.Generator().manual_seed(1))


def assert_same(left: nn.Module, right: nn.Module) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for key, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[key]), key


def message(source: str | Path, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(source, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("arguments", [SQUARE, WIDE, {**WIDE, "decoder": "cross", "mix_layers": True}])
def test_bamboo_checkpoint_gives_back_the_same_weights(tmp_path: Path, arguments: dict) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", arguments)
    loaded, (encoder, report) = load_mae(path), load_encoder(path)
    assert_same(loaded, mae)
    assert_same(encoder, mae.encoder)
    assert loaded.norm_pix == arguments.get("norm_pix", True)
    assert not loaded.training
    assert not encoder.training
    assert encoder.num_classes == 0
    assert not encoder.pos_embed.requires_grad
    assert set(report.unused.values()) == {"decoder weights, which an encoder does not need"}
    assert set(report.unused) == {f"mae.{key}" for key in mae.state_dict() if key.startswith("decoder.")}


def test_fine_tuned_checkpoint_gives_its_encoder(tmp_path: Path) -> None:
    mae = randomised(build_mae(**SQUARE))
    weights = {f"encoder._orig_mod.{key}": tensor for key, tensor in mae.encoder.state_dict().items()}
    weights |= {"encoder.head.weight": torch.zeros(5, 48), "ema.decay": torch.zeros(())}
    torch.save({"state_dict": weights, "hyper_parameters": SQUARE}, tmp_path / "tuned.ckpt")
    encoder, report = load_encoder(tmp_path / "tuned.ckpt")
    assert_same(encoder, mae.encoder)
    assert report.unused["encoder.head.weight"] == "the classifier head or pooling, left out"
    assert report.unused["ema.decay"].startswith("unexpected")
    with pytest.raises(InputError, match="no masked autoencoder"):
        load_mae(tmp_path / "tuned.ckpt")


@pytest.mark.parametrize("arguments", [SQUARE, WIDE, {**SQUARE, "decoder": "cross"}])
def test_timm_loads_an_export_from_its_folder(tmp_path: Path, arguments: dict) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", arguments)
    out, x = tmp_path / "out", images(arguments)
    assert {file.name for file in export(path, "timm", out)} == {"model.safetensors", "config.json"}
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()  # strict: no key is missing or unexpected
    assert_same(model, mae.encoder)
    assert torch.equal(model.forward_features(x), mae.encoder.forward_features(x))
    wrapped = AutoModel.from_pretrained(out, do_pooling=False).eval()
    assert torch.equal(wrapped(x).last_hidden_state, mae.encoder.forward_features(x))
    for source in (out, out / "model.safetensors", f"hf:{out}"):
        encoder, report = load_encoder(source)
        assert_same(encoder, mae.encoder)
        assert not report.unused


@pytest.mark.parametrize(("side", "crop"), [(224, 0.875), (256, 1.0)])
def test_timm_crops_as_evaluation_does(tmp_path: Path, side: int, crop: float) -> None:
    path, _ = bamboo_checkpoint(tmp_path / "last.ckpt", {**SQUARE, "image_size": side, "patch_size": 32})
    export(path, "timm", tmp_path)
    assert resolve_data_config(model=timm.create_model(f"local-dir:{tmp_path}"))["crop_pct"] == crop


def test_a_folder_of_timms_hub_that_others_wrote_loads(tmp_path: Path) -> None:
    options = {"img_size": 64, "depth": 2, "reg_tokens": 2, "num_classes": 5}
    model = randomised(timm.create_model("vit_tiny_patch16_224", **options))
    save_for_hf(model, tmp_path, safe_serialization=True)
    encoder, report = load_encoder(tmp_path)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.forward_features(x), model.forward_features(x))
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert torch.allclose(pixel_scale(tmp_path).mean.flatten(), 255 * torch.tensor(model.pretrained_cfg["mean"]))


def test_a_file_loads_by_the_timm_name_of_its_shape(tmp_path: Path) -> None:
    encoder = timm.create_model("bamboo_tiny_patch16_224", num_classes=0)
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    assert_same(load_encoder(f"timm:bamboo_tiny_patch16_224@{tmp_path / 'model.safetensors'}")[0], encoder)


def test_timm_name_with_a_file_of_another_size_and_a_head(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, in_chans=1, global_pool="avg", num_classes=7, reg_tokens=2, depth=12
    )
    randomised(model)
    save_file(model.state_dict(), file)
    assert "reg_token" in message(f"timm:vit_tiny_patch16_224@{file}")
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=64, in_chans=1, global_pool="avg"))
    save_file({f"model.{key}": tensor for key, tensor in model.state_dict().items()}, file)
    encoder, report = load_encoder(f"timm:vit_tiny_patch16_224@{file}")
    x = torch.randn(1, 1, 64, 64)
    assert torch.allclose(encoder.forward_features(x), model.fc_norm(model.forward_features(x)), atol=1e-5)
    assert encoder.pos_embed.requires_grad
    assert set(report.unused) == {"model.head.weight", "model.head.bias"}
    assert any("fc_norm" in note for note in report.notes)
    assert any("model." in note for note in report.notes)


# Registers and layer scale without a class token; a norm before the blocks and another epsilon.
@pytest.mark.parametrize("name", ["vit_little_patch16_reg1_gap_256", "vit_xsmall_patch16_clip_224"])
def test_timm_encoders_beyond_a_plain_vit_load_by_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "weights.safetensors"
    model = randomised(timm.create_model(name, img_size=64))
    save_file(model.state_dict(), file)
    encoder, _ = load_encoder(f"timm:{name}@{file}")
    x = torch.randn(1, 3, 64, 64)
    assert encoder.norm.eps == model.blocks[0].norm1.eps
    assert torch.allclose(encoder.forward_features(x), model.fc_norm(model.forward_features(x)), atol=1e-5)
    assert "timm:NAME@FILE" in message(file)


@pytest.mark.parametrize("arguments", [SQUARE, {**SQUARE, "in_chans": 1, "norm_pix": False}])
def test_hugging_face_round_trip(tmp_path: Path, arguments: dict) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", arguments)
    written = export(path, "hf", tmp_path / "hf")
    assert {p.name for p in written} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    model, info = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    x, noise = images(arguments), torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        output, expected = mae(x, noise), model.eval()(x, noise=noise)
    assert torch.allclose(output.loss, expected.loss, rtol=1e-5)
    logits = expected.logits.gather(1, output.masked.unsqueeze(-1).expand_as(output.predicted))
    assert torch.allclose(output.predicted, logits, atol=1e-5)
    assert_same(load_mae(tmp_path / "hf"), mae)
    assert_same(load_encoder(f"hf:{tmp_path / 'hf'}")[0], mae.encoder)


def test_hugging_face_export_says_how_pixels_are_standardised(tmp_path: Path) -> None:
    path, _ = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["mean"], content["hyper_parameters"]["std"] = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    torch.save(content, path)
    export(path, "hf", tmp_path)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (processor["image_mean"], processor["image_std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert processor["size"] == {"height": 32, "width": 32}
    for source in (path, tmp_path):
        assert torch.allclose(pixel_scale(source).mean.flatten() / 255, torch.tensor([0.1, 0.2, 0.3]))
        assert torch.allclose(pixel_scale(source).std.flatten() / 255, torch.tensor([0.4, 0.5, 0.6]))
        assert load_encoder(source)[0].pretrained_cfg == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").unlink()
    assert torch.allclose(pixel_scale(tmp_path).mean.flatten() / 255, torch.tensor(IMAGENET_MEAN))


def test_export_uses_the_names_of_the_public_hugging_face_checkpoint(tmp_path: Path) -> None:
    path, _ = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    export(path, "hf", tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {
        "vit.embeddings.cls_token",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.encoder.layer.0.attention.attention.query.weight",
        "vit.encoder.layer.1.output.dense.weight",
        "vit.layernorm.bias",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.decoder_layers.1.attention.attention.value.bias",
        "decoder.decoder_pred.weight",
    } <= names
    assert len(names) == 4 + 16 * 3 + 2 + 2 + 2 + 16 * 2 + 2 + 2


def vit_mae(**kwargs: Any) -> ViTMAEForPreTraining:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 100}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    options = {"image_size": 32, "patch_size": 8, "decoder_intermediate_size": 70, **sizes, **decoder, **kwargs}
    return randomised(ViTMAEForPreTraining(ViTMAEConfig(**options)))


@pytest.mark.parametrize("names", ["as_saved", "native"])
@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_hugging_face_vitmae_loads_with_equal_loss(tmp_path: Path, names: str, eps: float) -> None:
    model = vit_mae(layer_norm_eps=eps)
    model.save_pretrained(tmp_path)
    if names == "native":  # transformers 5 has other names in memory than in its files
        save_file(model.state_dict(), tmp_path / "model.safetensors")
    mae, x, noise = load_mae(tmp_path), images(SQUARE), torch.rand(2, 16)
    with torch.no_grad():
        assert torch.allclose(mae(x, noise).loss, model(x, noise=noise).loss, rtol=1e-5)
    encoder, report = load_encoder(tmp_path)
    assert all(key.startswith("decoder.") for key in report.unused)
    with torch.no_grad():
        everything = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
        expected = everything(x, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        assert torch.allclose(encoder.forward_features(x), expected, atol=1e-5)


def test_released_hugging_face_names_load(tmp_path: Path) -> None:
    model = vit_mae()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    released = {key.replace("decoder_encoder.layer.", "decoder_layers."): value for key, value in weights.items()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(released, tmp_path / "pytorch_model.bin")
    mae, x, noise = load_mae(tmp_path), images(SQUARE), torch.rand(2, 16)
    with torch.no_grad():
        assert torch.allclose(mae(x, noise).loss, model(x, noise=noise).loss, rtol=1e-5)


def test_of_several_files_of_weights_the_one_that_is_named_is_read(tmp_path: Path) -> None:
    model = vit_mae()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({key: torch.zeros_like(value) for key, value in weights.items()}, tmp_path / "model.fp16.safetensors")
    assert load_encoder(tmp_path)[0].norm.weight.any()
    assert load_encoder(tmp_path / "model.safetensors")[0].norm.weight.any()
    assert not load_encoder(tmp_path / "model.fp16.safetensors")[0].norm.weight.any()


@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification])
@pytest.mark.parametrize("sizes", [{"image_size": 32}, {"image_size": [16, 24], "num_channels": 1, "qkv_bias": False}])
def test_hugging_face_vit_gives_equal_features(tmp_path: Path, kind: type, sizes: dict) -> None:
    options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 100}
    model = randomised(kind(ViTConfig(patch_size=8, **options, **sizes)))
    model.save_pretrained(tmp_path)
    encoder, report = load_encoder(tmp_path)
    x = images({"image_size": sizes["image_size"], "in_chans": sizes.get("num_channels", 3)})
    with torch.no_grad():
        expected = getattr(model, "vit", model)(x).last_hidden_state
        assert torch.allclose(encoder.forward_features(x), expected, atol=1e-5)
    assert encoder.pos_embed.requires_grad  # learned, not the sin-cos table
    assert set(report.unused.values()) == {"the classifier head or pooling, left out"}
    with pytest.raises(InputError, match="no masked autoencoder"):
        load_mae(tmp_path)


def test_reference_round_trip(tmp_path: Path) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    for written in export(path, "reference", tmp_path / "out"):
        assert_same(load_mae(written), mae)
        assert_same(load_encoder(written)[0], mae.encoder)
    weights = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)["model"]
    assert weights["decoder_pos_embed"].shape == (1, 17, 32)
    assert not weights["decoder_pos_embed"][:, 0].any()


def reference_file(path: Path, wrapper: str = "", depth: int = 2, width: int = 128) -> Path:
    """A file with the names of the reference release: those of timm, and a decoder of timm's blocks."""
    names = timm.models.VisionTransformer(32, 8, embed_dim=width, depth=depth, num_heads=1, num_classes=0).state_dict()
    decoder = nn.ModuleDict({"decoder_embed": nn.Linear(width, 64), "decoder_pred": nn.Linear(64, 192)})
    decoder.update({"decoder_norm": nn.LayerNorm(64), "decoder_blocks": nn.ModuleList([Block(64, 1, qkv_bias=True)])})
    tokens = {"mask_token": torch.empty(1, 1, 64), "decoder_pos_embed": torch.empty(1, 17, 64)}
    generator, tensors = torch.Generator().manual_seed(0), {**names, **decoder.state_dict(), **tokens}
    weights = {wrapper + key: torch.randn(t.shape, generator=generator) / 10 for key, t in tensors.items()}
    weights[f"{wrapper}decoder_pos_embed"][:, 0] = 0
    torch.save({"model": weights}, path)
    return path


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
def test_reference_file_without_head_counts_loads(tmp_path: Path, wrapper: str) -> None:
    path = reference_file(tmp_path / "mae_pretrain.pth", wrapper)
    encoder, report = load_encoder(path)
    weights = torch.load(path, weights_only=True)["model"]
    assert torch.equal(encoder.blocks[1].attn.qkv.weight, weights[f"{wrapper}blocks.1.attn.qkv.weight"])
    assert encoder.blocks[0].attn.num_heads == 2
    assert report.kind == "a reference MAE file"
    assert {k.removeprefix(wrapper) for k in report.unused} >= {"mask_token", "decoder_pos_embed", "decoder_norm.bias"}
    assert "no head count: 2 heads of 64 taken" in str(report)
    assert (wrapper in str(report)) or not wrapper
    mae = load_mae(path)
    assert mae.decoder.blocks[0].attn.num_heads == 2
    assert torch.equal(mae.decoder.pos_embed, weights[f"{wrapper}decoder_pos_embed"][:, 1:])
    assert mae(torch.randn(1, 3, 32, 32), torch.rand(1, 16)).loss.isfinite()


def test_heads_of_a_named_shape_are_known(tmp_path: Path) -> None:
    encoder, _ = load_encoder(reference_file(tmp_path / "tiny.pth", depth=48, width=96))
    assert encoder.blocks[0].attn.num_heads == 3
    assert "how many heads" in message(reference_file(tmp_path / "odd.pth", depth=47, width=96))


def test_reference_sin_cos_table_is_recognised_as_frozen(tmp_path: Path) -> None:
    path = reference_file(tmp_path / "mae_pretrain.pth")
    assert load_encoder(path)[0].pos_embed.requires_grad
    content = torch.load(path, weights_only=True)
    omega = 1 / 10000 ** (torch.arange(32, dtype=torch.float64) / 32)
    rows, columns = (
        torch.arange(4.0).repeat_interleave(4).outer(omega.float()),
        torch.arange(4.0).repeat(4).outer(omega.float()),
    )
    # The reference release codes the column first.
    table = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    content["model"]["pos_embed"] = torch.cat([torch.zeros(1, 1, 128), table[None]], dim=1)
    torch.save(content, path)
    assert not load_encoder(path)[0].pos_embed.requires_grad


def test_decoder_that_moves_the_class_token_is_refused(tmp_path: Path) -> None:
    path = reference_file(tmp_path / "mae_pretrain.pth")
    content = torch.load(path, weights_only=True)
    content["model"]["decoder_pos_embed"][:, 0] = 1
    torch.save(content, path)
    load_encoder(path)
    with pytest.raises(InputError, match="row 0 of decoder_pos_embed is not zero"):
        load_mae(path)


@pytest.mark.parametrize("arguments", [SQUARE, WIDE])
@pytest.mark.parametrize("size", [(24, 40), 64])
def test_other_sizes_resample_positions_on_the_grid(tmp_path: Path, arguments: dict, size: int | tuple) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", arguments)
    encoder, report = load_encoder(path, image_size=size)
    grid = [size // 8] * 2 if isinstance(size, int) else [side // 8 for side in size]
    old = list(mae.encoder.patch_embed.grid_size)
    expected = resample_abs_pos_embed(mae.encoder.pos_embed, new_size=grid, old_size=old)
    assert torch.equal(encoder.pos_embed, expected)
    assert not encoder.pos_embed.requires_grad
    assert encoder(images({**arguments, "image_size": size})).shape == (2, 48)
    assert f"positions resampled from {old[0]}x{old[1]} to {grid[0]}x{grid[1]} patches" in str(report)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 5), (1, 3), (4, 2)])
def test_other_channels_keep_the_response_to_grey(tmp_path: Path, before: int, after: int) -> None:
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", {**SQUARE, "in_chans": before})
    encoder, report = load_encoder(path, in_chans=after)
    grey = torch.randn(1, 1, 32, 32)
    weight, old = encoder.patch_embed.proj.weight, mae.encoder.patch_embed.proj.weight
    assert weight.shape[1] == after
    assert f"adapted from {before} to {after} channels" in str(report)
    if (before, after) == (3, 1):
        assert torch.allclose(weight, old.sum(1, keepdim=True), atol=1e-6)
    if after == 3 or before == 4:
        seen = encoder.patch_embed(grey.expand(-1, after, -1, -1))
        assert torch.allclose(seen, mae.encoder.patch_embed(grey.expand(-1, before, -1, -1)), atol=1e-5)


def test_grid_that_is_no_square_needs_the_image_size(tmp_path: Path) -> None:
    mae = randomised(build_mae(**{**WIDE, "shape": {"depth": 2, "width": 64, "heads": 1}}))
    save_file(mae.encoder.state_dict(), tmp_path / "plain.safetensors")
    assert "positions for 6 patches, which are no square" in message(tmp_path / "plain.safetensors")
    assert_same(load_encoder(tmp_path / "plain.safetensors", image_size=(16, 24))[0], mae.encoder)


class Code:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_unreadable_files_get_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole, _ = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    assert "missing.ckpt is missing" in message("missing.ckpt")
    for size in (0, 100, whole.stat().st_size // 2, whole.stat().st_size - 10):
        (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:size])
        assert "cut.ckpt is cut short or no checkpoint" in message(tmp_path / "cut.ckpt")
    export(whole, "timm", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-50])
    assert "cut.safetensors is cut short or no safetensors file" in message(tmp_path / "cut.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    assert "text.pth is cut short or no checkpoint" in message(tmp_path / "text.pth")
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "code.ckpt")
    assert f"code.ckpt holds code ({os.system.__module__}.system), which is not run" in message(tmp_path / "code.ckpt")
    assert not (tmp_path / "harmed").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    assert "list.pth holds a list, not weights by name" in message(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    assert "empty.pth holds no weights" in message(tmp_path / "empty.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    assert "other.pth holds no vision transformer" in message(tmp_path / "other.pth")
    with pytest.raises(InputError, match="a folder"):
        read_file(tmp_path)


def test_old_pickles_and_command_line_options_are_read(tmp_path: Path) -> None:
    content = {"model": {"x": torch.ones(2)}, "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_file(tmp_path / "old.pth")["model"]["x"], torch.ones(2))


def test_checkpoint_of_another_shape_names_the_weight_and_both_shapes(tmp_path: Path) -> None:
    path, _ = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    content = torch.load(path, weights_only=True)
    wider = {**SQUARE, "shape": {"depth": 3, "width": 64, "heads": 4}}
    torch.save({**content, "hyper_parameters": wider}, path)
    assert message(path).endswith(
        "is a checkpoint of another shape: cls_token is (1, 1, 48) there, and (1, 1, 64) in this model"
    )
    with pytest.raises(InputError, match=r"encoder\.cls_token is \(1, 1, 48\) there"):
        load_mae(path)
    for depth, expected in ((4, "blocks.3.norm1.weight is missing there"), (2, "it has blocks.2.")):
        shape = {"depth": depth, "width": 48, "heads": 4}
        torch.save({**content, "hyper_parameters": {**SQUARE, "shape": shape}}, path)
        assert expected in message(path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("tim:vit_tiny_patch16_224", "unknown kind of source 'tim': did you mean 'timm'?"),
        ("timm:vit_tiny_patch16_225", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:bamboo_tinny_patch16_224", "did you mean 'bamboo_tiny_patch16_224'"),
        ("timm:xyz", "timm has no model like 'xyz'"),
        ("timm:bamboo_tiny_patch16_224", "give a file, timm:bamboo_tiny_patch16_224@FILE"),
        ("timm:vit_tiny_patch16_224.nowhere", "no weights for timm:vit_tiny_patch16_224.nowhere"),
        ("timm:vit_tiny_patch16_224@absent.pth", "absent.pth is missing"),
        ("timm:vit_tiny_patch16_224", "no weights for timm:vit_tiny_patch16_224"),
        ("hf:nobody/nothing", "the hub has no such model or cannot be reached"),
        ("hf:not a name", "neither a folder here nor a name on the hub"),
    ],
)
def test_unknown_sources_and_absent_networks_get_one_clear_line(
    source: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert expected in message(source)


def test_weights_of_the_hub_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, hub = timm.create_model, randomised(timm.create_model("vit_tiny_patch16_224"))
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained=False, **k: hub if pretrained else create(name, **k)
    )
    encoder, report = load_encoder("timm:vit_tiny_patch16_224.augreg_in21k", image_size=64)
    assert torch.equal(encoder.blocks[3].mlp.fc1.weight, hub.blocks[3].mlp.fc1.weight)
    assert encoder.patch_embed.grid_size == (4, 4)
    assert set(report.unused) == {"head.weight", "head.bias"}
    path, mae = bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)
    export(path, "hf", tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert_same(load_encoder("hf:owner/name")[0], mae.encoder)


def test_model_that_is_no_vit_is_refused(tmp_path: Path) -> None:
    mae = build_mae(**SQUARE)
    save_file(mae.encoder.state_dict(), tmp_path / "w.safetensors")
    assert "is not a plain ViT" in message(f"timm:resnet18@{tmp_path / 'w.safetensors'}")
    assert "not a plain ViT" in message(f"timm:eva02_tiny_patch14_224@{tmp_path / 'w.safetensors'}")


def test_unusable_hugging_face_folders_get_one_clear_line(tmp_path: Path) -> None:
    assert "it holds no config.json" in message(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{")
    assert "config.json is no JSON" in message(tmp_path)
    config.write_text('{"model_type": "vit_mea"}')
    assert "did you mean 'vit_mae'" in message(tmp_path)
    config.write_text('{"model_type": "vit", "hidden_act": "relu"}')
    assert "hidden_act 'relu' is not supported" in message(tmp_path)
    config.write_text('{"model_type": "vit"}')
    assert "neither model.safetensors nor pytorch_model.bin" in message(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "holds no weights" in message(tmp_path)


def test_formats_that_cannot_express_a_model_say_so_and_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    wide, _ = bamboo_checkpoint(tmp_path / "wide.ckpt", WIDE)
    cross, _ = bamboo_checkpoint(tmp_path / "cross.ckpt", {**SQUARE, "decoder": "cross"})
    for name in ("hf", "reference"):
        with pytest.raises(InputError, match="square images alone, not 16x24"):
            export(wide, name, out)
        with pytest.raises(InputError, match="no cross-attention decoder"):
            export(cross, name, out)
    with pytest.raises(InputError, match="did you mean 'timm'"):
        export(wide, "tim", out)  # type: ignore[arg-type]
    assert not out.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as temporary:
        temporary.write_text(b"half")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot write"), atomic_write(path / "below"):
        pass


def test_report_reads_well() -> None:
    unused = {f"decoder_blocks.{i}": "decoder weights, which an encoder does not need" for i in range(5)}
    report = Report("a.pth", "a reference MAE file", 10, ("12 heads of 64 taken",), {**unused, "x": "unexpected"})
    assert str(report).splitlines() == [
        "a.pth (a reference MAE file): 10 tensors loaded, 6 not used",
        "  12 heads of 64 taken",
        "  5 not used, decoder weights, which an encoder does not need: "
        "decoder_blocks.0, decoder_blocks.1, decoder_blocks.2 and 2 more",
        "  1 not used, unexpected: x",
    ]


def test_random_weights_of_a_timm_name(tmp_path: Path) -> None:
    encoder, report = load_encoder("timm:vit_tiny_patch16_224@random", image_size=32)
    assert encoder.patch_embed.grid_size == (2, 2)
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert "random weights need timm:NAME@random" in message("last.ckpt@random")
    for format in ("timm", "hf"):
        export(bamboo_checkpoint(tmp_path / "last.ckpt", SQUARE)[0], format, tmp_path / format)
        assert "random weights are drawn for timm:NAME@random" in message(f"{tmp_path / format}@random")


def test_pixels_of_a_timm_model_are_standardised_as_timm_says() -> None:
    assert torch.allclose(pixel_scale("timm:vit_tiny_patch16_224.augreg_in21k@random").mean, torch.tensor(127.5))
