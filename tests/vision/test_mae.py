"""The masked autoencoder equals other implementations of it, in value and gradient, and runs in every combination."""

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bamboo.checkpoints.key_maps import to_huggingface
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.vision.decoders import CrossAttentionDecoder, LastBlock, SelfAttentionDecoder
from bamboo.vision.encoder import block_states, embed, encode, gather
from bamboo.vision.mae import MaskedAutoencoder, build_mae
from bamboo.vision.pixels import patchify, unpatchify

DECODER, TINY = Shape(2, 32, 4), Shape(2, 32, 2)
SHAPES = {
    "tiny": TINY,
    "base_ratio": Shape(12, 96, 12),
    "deep_narrow": Shape(48, 24, 2),
    "other_mlp": Shape(3, 40, 5, 2.5),
}


@torch.no_grad()
def randomised(model: Any, seed: int = 0) -> Any:
    """In double precision, and with no weight left at zero or one, where a wrong use of it would not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def inputs(mae: MaskedAutoencoder, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator, patch_embed = torch.Generator().manual_seed(1), mae.encoder.patch_embed
    images = torch.randn(
        batch, mae.encoder.patch_embed.proj.in_channels, *patch_embed.img_size, generator=generator, dtype=torch.double
    )
    return 2 * images + 1, torch.rand(batch, patch_embed.num_patches, generator=generator)


def assert_near(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    """Equal up to single precision, in which the loss is taken."""
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-9, name


def assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert_near(gradient, theirs[name], name)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# transformers 5 names weights otherwise in memory than in files.
NATIVE = [
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
]


def as_transformers(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {}
    for key, tensor in to_huggingface(ours).items():
        for file, memory in NATIVE:
            key = key.replace(file, memory)
        theirs[key] = tensor
    return theirs


def twin(mae: MaskedAutoencoder, shape: Shape, mask_ratio: float) -> Any:
    """transformers' model with the same weights."""
    config = ViTMAEConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_width,
        decoder_hidden_size=DECODER.width,
        decoder_num_hidden_layers=DECODER.depth,
        decoder_num_attention_heads=DECODER.heads,
        decoder_intermediate_size=DECODER.mlp_width,
        image_size=mae.encoder.patch_embed.img_size[0],
        patch_size=mae.patch_size,
        num_channels=mae.encoder.patch_embed.proj.in_channels,
        layer_norm_eps=1e-6,
        mask_ratio=mask_ratio,
        norm_pix_loss=mae.norm_pix,
        attn_implementation="sdpa",
    )
    model = ViTMAEForPreTraining(config).double()
    model.load_state_dict(as_transformers(mae.state_dict()))
    return model.train()


def assert_equal_to_transformers(shape: Shape, patch_size: int = 4, mask_ratio: float = 0.75, **kwargs: Any) -> None:
    mae = build_mae(shape, 24, patch_size, mask_ratio=mask_ratio, decoder_shape=DECODER, **kwargs)
    model = twin(randomised(mae).train(), shape, mask_ratio)
    images, noise = inputs(mae)
    ours, theirs = mae(images, noise), model(images, noise=noise)
    assert_near(ours.loss, theirs.loss)
    assert_near(ours.predicted, gather(theirs.logits, ours.masked))
    # Positions are frozen in both; the map of the weights wants one for the decoder.
    mine = gradients(mae, ours.loss) | {"decoder.pos_embed": torch.zeros_like(mae.decoder.pos_embed)}
    named = {name: gradient for name, gradient in as_transformers(mine).items() if not name.endswith("pos_embed")}
    assert_equal_gradients(named, gradients(model, theirs.loss))


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_every_gradient_equal_transformers(shape: str, norm_pix: bool) -> None:
    assert_equal_to_transformers(SHAPES[shape], norm_pix=norm_pix)


@pytest.mark.parametrize(("patch_size", "in_chans", "ratio"), [(8, 1, 0.75), (4, 1, 0.5), (2, 3, 0.9), (6, 4, 0.3)])
def test_other_patches_channels_and_mask_ratios_equal_transformers(
    patch_size: int, in_chans: int, ratio: float
) -> None:
    assert_equal_to_transformers(TINY, patch_size, ratio, in_chans=in_chans)


def naive_loss(mae: MaskedAutoencoder, images: Tensor, noise: Tensor) -> Tensor:
    """One sample, one patch at a time: whole sequences in image order, every position decoded, pixels cut by hand."""
    encoder, decoder, size = mae.encoder, mae.decoder, mae.patch_size
    columns, losses = encoder.patch_embed.grid_size[1], []
    for image, values in zip(images, noise.tolist(), strict=True):
        order = sorted(range(len(values)), key=values.__getitem__)
        visible, predicted = order[: mae.visible], order[mae.visible : mae.visible + mae.predicted]
        tokens = encoder.patch_embed(image[None])[0] + encoder.pos_embed[0, 1:]
        head = encoder.cls_token[0] + encoder.pos_embed[0, :1]
        hidden = encoder.norm(encoder.blocks(torch.cat([head, tokens[visible]])[None]))
        context = decoder.embed(hidden[0])
        known = dict(zip(visible, context[1:], strict=True))
        shown = [i for i in range(len(values)) if i in known or i in predicted]
        rows = [known.get(i, decoder.mask_token[0, 0]) + decoder.pos_embed[0, i] for i in shown]
        decoded = torch.stack([context[0], *rows])[None]
        for block in decoder.blocks:
            decoded = Block.forward(block, decoded)
        outputs = decoder.pred(decoder.norm(decoded))[0, 1:]
        for i in predicted:
            top, left = i // columns * size, i % columns * size
            patch = image[:, top : top + size, left : left + size].permute(1, 2, 0).flatten()
            if mae.norm_pix:
                variance = (patch - patch.mean()).square().sum() / (len(patch) - 1)
                patch = (patch - patch.mean()) / torch.sqrt(variance + 1e-6)
            losses.append((outputs[shown.index(i)] - patch).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("predict_ratio", [1.0, 0.5])
@pytest.mark.parametrize(("size", "in_chans"), [((8, 24), 3), ((20, 12), 1)])
def test_non_square_images_equal_a_written_out_loss(
    size: tuple[int, int], in_chans: int, predict_ratio: float, norm_pix: bool
) -> None:
    mae = build_mae(TINY, size, 4, in_chans, 0.6, predict_ratio, norm_pix, decoder_shape=DECODER)
    images, noise = inputs(randomised(mae))
    ours, theirs = mae(images, noise).loss, naive_loss(mae, images, noise)
    assert_near(ours, theirs)
    assert_equal_gradients(gradients(mae, ours), gradients(mae, theirs))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "non_square": {"img_size": (16, 24)},
    "one_channel": {"in_chans": 1},
    "registers": {"reg_tokens": 3},
    "no_class_token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "registers_alone": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 1},
    "pre_norm": {"pre_norm": True},
    "layer_scale_and_qk_norm": {"init_values": 0.5, "qk_norm": True},
}


def vit(**kwargs: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return randomised(VisionTransformer(**{**sizes, **kwargs})).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_all_patches_equal_timm_whatever_their_order(variant: str) -> None:
    encoder = vit(**VARIANTS[variant])
    images = torch.randn(2, encoder.patch_embed.proj.in_channels, *encoder.patch_embed.img_size, dtype=torch.double)
    keep = torch.stack([torch.randperm(encoder.patch_embed.num_patches) for _ in images])
    *_, last = block_states(encoder, embed(encoder, patchify(images, 4), keep))
    ours, theirs, prefix = encoder.norm(last), encoder.forward_features(images), encoder.num_prefix_tokens
    assert torch.allclose(ours[:, :prefix], theirs[:, :prefix], atol=1e-10)
    assert torch.allclose(ours[:, prefix:], gather(theirs[:, prefix:], keep), atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_plain_vit_can_be_pretrained(variant: str) -> None:
    encoder = vit(**VARIANTS[variant])
    patches = build_mae(
        TINY, encoder.patch_embed.img_size, 4, encoder.patch_embed.proj.in_channels, decoder_shape=DECODER
    )
    mae = MaskedAutoencoder(encoder.train(), patches.decoder.double())
    loss = mae(*inputs(mae)).loss
    assert loss.isfinite()
    unused = {"fc_norm.weight", "fc_norm.bias"}  # after the pooling, which pretraining does not do
    named = {n: p for n, p in encoder.named_parameters() if n not in unused}
    assert all(g is not None for g in torch.autograd.grad(loss, list(named.values()), allow_unused=True))


def naive_cross(decoder: CrossAttentionDecoder, states: list[Tensor], masked: Tensor) -> Tensor:
    """Cross-attention by `nn.MultiheadAttention`, layers mixed in a loop."""
    queries = decoder.mask_token + torch.stack([decoder.pos_embed[0, index] for index in masked])
    for number, block in enumerate(decoder.blocks):
        context = states[-1]
        if decoder.all_layers:
            context = sum(weight * state for weight, state in zip(decoder.mix[number], states, strict=True))
        context, width = decoder.embed(context), queries.shape[-1]
        attention = nn.MultiheadAttention(width, block.attn.num_heads, batch_first=True, dtype=torch.double)
        attention.load_state_dict(
            {
                "in_proj_weight": block.attn.qkv.weight,
                "in_proj_bias": block.attn.qkv.bias,
                "out_proj.weight": block.attn.proj.weight,
                "out_proj.bias": block.attn.proj.bias,
            }
        )
        queries = queries + attention(block.norm1(queries), context, context)[0]
        queries = queries + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(queries))))
    return decoder.pred(decoder.norm(queries))


@pytest.mark.parametrize("mix_layers", [False, True])
def test_cross_attention_decoder_equals_a_written_out_one(mix_layers: bool) -> None:
    mae = randomised(build_mae(TINY, (8, 24), 4, decoder="cross", decoder_shape=DECODER, mix_layers=mix_layers))
    images, noise = inputs(mae)
    output = mae(images, noise)
    tokens = embed(mae.encoder, patchify(images, 4), output.keep)
    states = [mae.encoder.norm(state) for state in block_states(mae.encoder, tokens)]
    assert torch.allclose(output.predicted, naive_cross(mae.decoder, states, output.masked), atol=1e-10)


def test_mixed_layers_start_as_the_last_layer_alone() -> None:
    mae = build_mae(TINY, 16, 4, decoder="cross", decoder_shape=DECODER, mix_layers=True)
    assert mae.decoder.mix.tolist() == [[0.0, 1.0]] * DECODER.depth


def test_last_block_on_masked_positions_equals_the_whole_block() -> None:
    block = randomised(Block(32, 4, qkv_bias=True))
    last = LastBlock(32, 4, qkv_bias=True).double()
    last.load_state_dict(block.state_dict())
    tokens = torch.randn(2, 9, 32, dtype=torch.double)
    for count in (1, 4, 9):
        assert torch.allclose(last(tokens, count), block(tokens)[:, -count:], atol=1e-12)


COMBINATIONS = [
    (decoder, mix, norm_pix, predict_ratio, in_chans, size)
    for decoder, mix, norm_pix, predict_ratio, in_chans, size in itertools.product(
        ["self", "cross"], [False, True], [True, False], [1.0, 0.5], [1, 3], [16, (8, 24)]
    )
    if decoder == "cross" or not mix
]


@pytest.mark.parametrize(("decoder", "mix", "norm_pix", "predict_ratio", "in_chans", "size"), COMBINATIONS)
def test_every_combination_trains_every_parameter(
    decoder: Any, mix: bool, norm_pix: bool, predict_ratio: float, in_chans: int, size: Any
) -> None:
    mae = build_mae(TINY, size, 4, in_chans, 0.75, predict_ratio, norm_pix, decoder, DECODER, mix)
    images, noise = inputs(mae)
    output = mae(images.float(), noise)
    output.loss.backward()
    assert output.loss.isfinite()
    hidden = noise.shape[1] - mae.visible
    assert output.predicted.shape == (2, round(hidden * predict_ratio), 16 * in_chans)
    frozen = {name for name, parameter in mae.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.pos_embed", "decoder.pos_embed"}
    for name, parameter in mae.named_parameters():
        assert name in frozen or (parameter.grad is not None and parameter.grad.isfinite().all()), name
        assert name in frozen or parameter.grad.any() or name.endswith("bias"), name


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_loss_stays_in_single_precision_under_bf16(decoder: Any) -> None:
    mae = build_mae(TINY, 16, 4, decoder=decoder, decoder_shape=DECODER, mix_layers=decoder == "cross")
    images, noise = inputs(mae)
    single = mae(images.float(), noise).loss
    with torch.autocast("cpu", torch.bfloat16):
        output = mae(images.float(), noise)
    assert output.predicted.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert torch.allclose(output.loss, single, rtol=0.02)


def test_checkpointed_gradients_are_the_same() -> None:
    mae = randomised(build_mae(TINY, 16, 4, decoder_shape=DECODER)).train()
    images, noise = inputs(mae)
    plain = gradients(mae, mae(images, noise).loss)
    mae.encoder.set_grad_checkpointing(True)
    assert_equal_gradients(gradients(mae, mae(images, noise).loss), plain)


def test_visible_and_masked_are_the_lowest_and_highest_noise() -> None:
    mae = build_mae(TINY, 12, 4, mask_ratio=0.6, decoder_shape=DECODER)
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6]])
    keep, masked = mae.split(noise)
    assert keep.tolist() == [[1, 5, 3]]
    assert masked.tolist() == [[7, 0, 8, 6, 4, 2]]


def test_features_are_the_same_from_call_to_call() -> None:
    mae = build_mae(TINY, (8, 24), 4, decoder_shape=DECODER).train()
    images, noise = inputs(mae)
    before = encode(mae.encoder, images.float())
    mae(images.float(), noise)
    assert torch.equal(encode(mae.encoder, images.float()), before)
    assert before.shape == (2, 1 + 12, 32)


def test_patches_hold_the_pixels_they_should() -> None:
    images = torch.arange(2 * 2 * 4 * 6).reshape(2, 2, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 8)
    # The patch in row 1 and column 2 of the first image: its pixels row by row, both channels of each.
    assert patches[0, 5].tolist() == [16, 40, 17, 41, 22, 46, 23, 47]
    assert torch.equal(unpatchify(patches, (2, 3), 2), images)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_pixels_come_back_from_the_target(norm_pix: bool) -> None:
    mae = build_mae(TINY, 16, 4, norm_pix=norm_pix, decoder_shape=DECODER)
    patches = 3 * torch.randn(2, 5, 48) + 1
    assert torch.allclose(mae.to_pixels(mae.target(patches), patches), patches, atol=1e-5)
    flat = torch.full((1, 1, 48), 2.0)
    assert torch.equal(mae.to_pixels(mae.target(flat), flat), flat)


def test_target_has_unit_unbiased_variance() -> None:
    target = build_mae(TINY, 16, 4, decoder_shape=DECODER).target(torch.randn(2, 5, 48, dtype=torch.bfloat16))
    assert target.dtype == torch.float32
    assert torch.allclose(target.mean(-1), torch.zeros(2, 5), atol=1e-6)
    assert torch.allclose(target.square().sum(-1) / 47, torch.ones(2, 5), atol=1e-4)


def test_nearly_flat_patches_are_divided_by_no_less_than_a_thousandth() -> None:
    patches = torch.tensor([-1e-3, 1e-3]).repeat(24)[None, None]
    target = build_mae(TINY, 16, 4, decoder_shape=DECODER).target(patches)
    assert torch.allclose(target.abs(), torch.tensor(1e-3 / (1e-6 * 48 / 47 + 1e-6) ** 0.5), rtol=1e-4)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"patch_size": 5}, "patch size 5 does not divide the image size 16x16"),
        ({"image_size": (16, 18)}, "patch size 4 does not divide the image size 16x18"),
        ({"in_chans": 0}, "must be positive"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 leaves 0 of 16 patches visible"),
        ({"mask_ratio": 0.0}, "mask_ratio 0.0 leaves 16 of 16 patches visible"),
        ({"mask_ratio": -1.0}, "leaves 32 of 16"),
        ({"predict_ratio": 0.01}, "predict_ratio 0.01 predicts 0 of 12 patches"),
        ({"predict_ratio": 1.5}, "predict_ratio 1.5 predicts 18 of 12 patches"),
        ({"mix_layers": True}, "mix_layers belongs to the cross-attention decoder"),
        ({"shape": "bambo-base"}, "did you mean 'bamboo-base'"),
        ({"shape": Shape(2, 30, 2)}, "multiple of 4, got 30"),
        ({"decoder_shape": Shape(2, 30, 2)}, "multiple of 4, got 30"),
        ({"decoder": "corss"}, "unknown decoder 'corss': did you mean 'cross'"),
    ],
)
def test_bad_arguments_get_one_clear_line(kwargs: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        build_mae(**{"shape": TINY, "image_size": 16, "patch_size": 4, "decoder_shape": DECODER, **kwargs})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (lambda: nn.Linear(2, 2), "needs a timm VisionTransformer, got Linear"),
        (lambda: timm.create_model("test_resnet"), "needs a timm VisionTransformer, got ResNet"),
        (lambda: vit(pos_embed="none"), "has none"),
        (lambda: vit(dynamic_img_size=True), "no dynamic_img_size"),
    ],
)
def test_encoders_that_cannot_be_masked_are_refused(encoder: Any, expected: str) -> None:
    decoder: SelfAttentionDecoder = build_mae(TINY, 16, 4, decoder_shape=DECODER).decoder
    with pytest.raises(InputError, match=expected):
        MaskedAutoencoder(encoder(), decoder)


@pytest.mark.parametrize("decoder", ["self", "cross"])
def test_a_batch_of_no_image_passes(decoder: Any) -> None:
    """As one of which none could be read."""
    mae = build_mae(TINY, 16, 4, 1, decoder=decoder, decoder_shape=DECODER)
    assert mae(torch.empty(0, 1, 16, 16), torch.empty(0, 16)).predicted.shape == (0, 12, 16)
