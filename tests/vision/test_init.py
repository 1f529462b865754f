"""How an encoder starts, against timm's BEiT and ViT and transformers' GPT-2."""

import pytest
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from transformers import GPT2Config, GPT2Model

from bamboo.analysis.model_sources import fresh_copy, open_model
from bamboo.analysis.profiling import profile
from bamboo.errors import InputError
from bamboo.finetune.classifier import Classifier
from bamboo.shapes import Patches, Shape
from bamboo.vision.encoder import Init, build_encoder
from bamboo.vision.mae import build_mae
from tests.runs import fit, last

SHAPE, PATCHES = Shape(3, 64, 4), Patches.of(16, 4)


def drawn(init: Init, shape: Shape = SHAPE) -> VisionTransformer:
    torch.manual_seed(0)
    return build_encoder(shape, PATCHES, init)


def test_beit_divides_by_the_number_of_the_block() -> None:
    ours, timms = drawn("beit"), drawn("mae")
    with torch.no_grad():
        Beit.fix_init_weight(timms)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.state_dict(), timms.state_dict())


def test_depth_divides_by_what_gpt2_divides_by() -> None:
    depth = 6
    gpt2 = GPT2Model(GPT2Config(n_layer=depth, n_embd=128, n_head=2, vocab_size=8))
    asked = gpt2.h[0].attn.c_proj.weight.std() / gpt2.h[0].attn.c_attn.weight.std()
    shape = Shape(depth, 128, 2)
    mae, scaled = drawn("mae", shape), drawn("depth", shape)
    for plain, block in zip(mae.blocks, scaled.blocks, strict=True):
        for projection in ("attn.proj", "mlp.fc2"):
            ratio = block.get_submodule(projection).weight / plain.get_submodule(projection).weight
            torch.testing.assert_close(ratio, ratio.new_full((), (2 * depth) ** -0.5).expand_as(ratio))
            assert ratio.mean().item() == pytest.approx(asked.item(), rel=0.02)
        torch.testing.assert_close(block.mlp.fc1.weight, plain.mlp.fc1.weight)


def test_timm_draws_what_timm_draws() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
    timms = VisionTransformer(**sizes, num_classes=0).state_dict()
    for name, weight in drawn("timm").state_dict().items():
        if name != "pos_embed":
            both = torch.stack([weight.std(), timms[name].std()])
            assert both[0] == pytest.approx(both[1].item(), rel=0.3 if weight.numel() < 100 else 0.08), name


@pytest.mark.parametrize("init", ["depth", "beit", "timm"])
def test_the_masked_autoencoder_and_the_classifier_start_alike(init: Init) -> None:
    sizes = {"shape": SHAPE, "image_size": 16, "patch_size": 4, "init": init}
    torch.manual_seed(0)
    mae = build_mae(**sizes, decoder_shape=Shape(1, 16, 2)).encoder
    torch.manual_seed(0)
    classifier = Classifier(10, "scratch", **sizes).model
    for name, weight in mae.named_parameters():
        if not name.startswith(("norm.", "fc_norm.")):
            torch.testing.assert_close(classifier.state_dict()[name], weight)


def test_a_fresh_copy_of_a_checkpoint_starts_as_its_encoder_did(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        fit("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--model.init_args.init", "depth") == 0
    )
    again = fresh_copy(open_model(str(last(tmp_path)))).model
    inner, ending = again.blocks[0].mlp.fc1.weight.std(), again.blocks[0].mlp.fc2.weight.std()
    assert (ending / inner).item() == pytest.approx((2 * len(again.blocks)) ** -0.5, rel=0.1)


def test_smaller_branches_leave_tokens_apart_at_the_start() -> None:
    deep = Shape(24, 32, 4)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ends = {init: profile(drawn(init, deep).eval(), [images]).curve().mean[-1] for init in ("mae", "depth")}
    assert 1 - ends["depth"] > 3 * (1 - ends["mae"])


def test_another_rule_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown init 'xavier'.*mae"):
        drawn("xavier")  # type: ignore[arg-type]
