"""Profiles: right numbers, whatever the batch size, order, workers, processes and precision."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bamboo.analysis import Comparison, Profile, capture, compare, measures, profile
from bamboo.analysis.measures.definitions import DEFINITIONS, choose
from bamboo.analysis.recording import Key
from bamboo.errors import InputError
from bamboo.shapes import Shape
from bamboo.vision.mae import build_mae

from .tiny import DEPTH, NORMED_BRANCHES, PREFIX, TEXT, VISION, image, images, sentences, timm_vit

CHEAP = ["token_similarity", "spectrum"]
TEXTS = [kind for kind in TEXT if kind not in ("Mistral", "Qwen 3")]  # which are made like Llama here


def close(one: Profile, other: Profile, tolerance: float = 2e-5) -> None:
    assert one.keys == other.keys
    assert one.pooled.keys() == other.pooled.keys()
    for key, value in one.pooled.items():
        np.testing.assert_allclose(other.pooled[key].mean, value.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.values, other.values, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.statistics, other.statistics, rtol=tolerance, atol=tolerance)


def text_batch(lengths: tuple[int, ...] = (12, 5, 9), seed: int = 0) -> dict[str, torch.Tensor]:
    batch = sentences(lengths, seed)
    special = torch.zeros_like(batch["input_ids"])
    special[:, 0] = 1
    for row, length in enumerate(lengths):
        special[row, length - 1] = 1
    return {**batch, "special_tokens_mask": special}


@pytest.mark.parametrize("kind", [*VISION, *TEXTS])
def test_every_measure_of_every_kind_of_model(kind: str):
    batch: Any = text_batch() if kind in TEXT else images()
    result = profile({**VISION, **TEXT}[kind](), [batch], ["all"])
    assert result.depth == DEPTH
    has_class, registers = PREFIX.get(kind, (True, 0))
    absent = {"register_similarity"} if not registers or kind in TEXT else set()
    absent |= set() if has_class else {"cls_similarity"}
    absent |= {"position_share", "same_position_similarity"} if kind in TEXT else set()
    found = {measure.partition("/")[0] for _, measure in result.measured}
    assert found == set(DEFINITIONS) - absent
    assert result.curve().layers == list(range(DEPTH + 1))
    undefined = {key.measure for key, bad in zip(result.keys, np.isnan(result.values).any(0), strict=True) if bad}
    assert undefined == ({"residual_bound"} if kind in NORMED_BRANCHES else set())
    for gain in ("attention", "residual"):
        curve, bound = result.curve(f"{gain}_gain", "attention"), result.curve(f"{gain}_bound", "attention")
        assert not (curve.mean > bound.mean * 1.0001).any()


@pytest.mark.parametrize("kind", ["timm with class token", "timm with registers", "torchvision ViT", "HF DeiT"])
def test_patches_alone_count_and_the_prefix_is_apart(kind: str):
    model = VISION[kind]()
    result = profile(model, [images()])
    prefix = sum(PREFIX.get(kind, (True, 0)))
    states: list[torch.Tensor] = []
    with torch.no_grad(), capture(model, lambda s: states.append(s.tokens) if s.position == "stream" else None):
        model(images())
    expected = torch.stack([measures.token_similarity(state[:, prefix:]) for state in states]).mean(1)
    np.testing.assert_allclose(result.curve().mean, expected, rtol=1e-5)
    first = torch.stack(
        [
            measures.prefix_similarity(
                s, torch.arange(s.shape[1]).expand(3, -1) == 0, torch.arange(s.shape[1]).expand(3, -1) >= prefix
            )
            for s in states
        ]
    ).mean(1)
    np.testing.assert_allclose(result.curve("cls_similarity").mean, first, rtol=1e-5)
    everything = profile(model, [images()], ["token_similarity"], tokens="all")
    expected = torch.stack([measures.token_similarity(state) for state in states]).mean(1)
    np.testing.assert_allclose(everything.curve().mean, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", TEXTS)
def test_padding_does_not_change_the_profile_of_a_text(kind: str):
    model = TEXT[kind]()
    together = text_batch()
    alone = []
    for row, length in enumerate((12, 5, 9)):
        alone.append({name: part[row : row + 1, :length] for name, part in together.items()})
    close(profile(model, [together], ["all"]), profile(model, alone, ["all"]), 1e-3)


def test_special_tokens_of_a_text_are_named_or_counted_on_request():
    model, batch = TEXT["BERT"](), text_batch()
    bare = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match="return_special_tokens_mask=True"):
        profile(model, [bare], CHEAP)
    close(profile(model, [bare], CHEAP, tokens="all"), profile(model, [batch], CHEAP, tokens="all"), 0)


def test_batch_size_order_and_workers_do_not_matter():
    model, data = timm_vit(), TensorDataset(images(11))
    reference = profile(model, DataLoader(data, 11), ["all"])
    close(reference, profile(model, DataLoader(data, 2), ["all"]), 1e-4)
    close(reference, profile(model, DataLoader(data, 4, shuffle=True), ["all"]), 1e-4)
    close(profile(model, DataLoader(data, 4), CHEAP), profile(model, DataLoader(data, 3, num_workers=2), CHEAP))


def test_masks_follow_from_the_content_of_a_sample_and_the_seed():
    model, data = timm_vit(), TensorDataset(images(6))
    reference = profile(model, DataLoader(data, 6), CHEAP, mask_ratio=0.75)
    close(reference, profile(model, DataLoader(data, 4, shuffle=True), CHEAP, mask_ratio=0.75))
    other = profile(model, DataLoader(data, 6), CHEAP, mask_ratio=0.75, seed=1)
    assert not np.allclose(reference.values, other.values)
    assert not reference.has("spectrum/0")  # scattered patches have no neighbours
    mae = build_mae(Shape(DEPTH, 32, 4), 16, 4, decoder_shape=Shape(1, 16, 4)).eval()
    masked, whole = (profile(mae, [images()], ["token_norm"], mask_ratio=ratio) for ratio in (0.75, 0.0))
    assert masked.settings["model"] == "MaskedAutoencoder"
    assert not np.allclose(masked.values, whole.values)


def test_transformers_masked_autoencoder_runs_whole_and_masked():
    model = image("ViTMAE")
    whole = profile(model, [images()], ["token_similarity", "dirichlet_energy"])
    again = profile(model, [images()], ["token_similarity", "dirichlet_energy"])
    close(whole, again, 0)
    assert model.config.mask_ratio == 0.75
    masked = profile(model, [images()], ["token_similarity"], mask_ratio=0.5)
    assert not np.allclose(masked.curve().mean[-1], whole.curve().mean[-1])


def timm_vit_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm_vit()


def test_intervals_hold_the_mean_and_cover_it_as_often_as_they_say():
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 2.0, size=(20, 1000)).astype(np.float32)
    keys = tuple(Key("stream", "token_norm", layer) for layer in range(1000))
    _, mean, low, high, _ = Profile("m", 999, keys, values).curve("token_norm")
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5)
    assert abs(((low < 3.0) & (high > 3.0)).mean() - 0.95) < 0.02
    assert np.isnan(Profile("m", 999, keys, values[:1]).curve("token_norm").low).all()


def share(rank: int, folder: Path, measures: Sequence[str] = CHEAP) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    result = profile(timm_vit_of(0), [images(7)[rank::2]], measures)
    result.save(folder / str(rank))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path: Path):
    torch.multiprocessing.start_processes(share, (tmp_path,), nprocs=2, start_method="fork")
    reference = profile(timm_vit_of(0), [images(7)], CHEAP)
    close(reference, Profile.load(tmp_path / "0"))
    close(reference, Profile.load(tmp_path / "1"))


def test_mode_gradients_and_hooks_are_as_before():
    model = timm_vit().train()
    model.blocks[1].eval()
    model.pos_embed.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    wanted = [(m, m.training) for m in model.modules()], [(p.requires_grad, p.grad) for p in model.parameters()]
    profile(model, [images()], ["all"])
    assert wanted[0] == [(m, m.training) for m in model.modules()]
    assert wanted[1] == [(p.requires_grad, p.grad) for p in model.parameters()]
    assert torch.is_grad_enabled()


def test_bytes_are_standardised_as_the_model_was_trained():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    model = timm_vit()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    expected = profile(model, [(pixels / 255 - 0.5) / 0.5], CHEAP)
    for batch in (pixels, (pixels, torch.zeros(2)), {"image": pixels, "label": 0}, {"pixel_values": pixels}):
        result = profile(model, [batch], CHEAP)
        np.testing.assert_allclose(np.sort(result.values, 0), np.sort(expected.values, 0), rtol=1e-3, atol=1e-5)


def test_bf16_models_are_measured_in_fp32():
    model = timm_vit()
    fine, coarse = (profile(model, [images(8)], ["token_similarity"], precision=p) for p in ("32", "bf16"))
    assert not (fine.values == coarse.values).all()
    np.testing.assert_allclose(fine.curve().mean, coarse.curve().mean, atol=5e-3)


def test_non_square_images_and_samples_limit():
    model = timm_vit(img_size=(16, 32))
    result = profile(model, DataLoader(TensorDataset(images(9, 16, 32)), 4), samples=6)
    assert len(result.values) == 6
    shares = sum(result.curve(f"spectrum/{ring}").mean for ring in range(3))
    np.testing.assert_allclose(shares, 1, rtol=1e-5)


def test_summary_says_where_similarity_passes_levels():
    keys = tuple(Key("stream", "token_similarity", layer) for layer in range(5))
    values = np.tile(np.array([0.1, 0.3, 0.6, 0.7, 0.8], np.float32), (4, 1))
    summary = Profile("m", 4, keys, values).summary()
    assert summary["passes_0.5"] == 2
    assert summary["passes_0.9"] is None
    assert summary["last"] == pytest.approx(0.8)
    assert summary["slope"] == pytest.approx(0.72)


def test_profiles_survive_saving_and_compare_side_by_side(tmp_path: Path):
    one, two = (profile(timm_vit_of(seed), [images(5)], label=f"model {seed}") for seed in (0, 1))
    both = compare({"first": one, "second": two})
    both.save(tmp_path)
    again = Comparison.load(tmp_path)
    assert [p.label for p in again.profiles] == ["first", "second"]
    close(one, again.profiles[0], 0)
    assert again.profiles[1].settings == two.settings
    close(two, Profile.load(tmp_path, "second"), 0)
    with pytest.raises(InputError, match="did you mean 'first'"):
        Profile.load(tmp_path, "frist")
    with pytest.raises(InputError, match="2 profiles, name one"):
        Profile.load(tmp_path)
    table = both.to_pandas()
    assert list(table.columns) == ["model", "layer", "position", "measure", "mean", "low", "high", "n"]
    assert len(table) == 2 * (len(one.keys) + len(one.pooled))
    csv = (tmp_path / "profile.csv").read_text().splitlines()
    assert csv[0] == ",".join(table.columns)
    assert len(csv) == len(table) + 1
    assert json.loads((tmp_path / "profile.json").read_text())["profiles"][0]["summary"]["depth"] == DEPTH


def test_nan_states_are_reported_and_other_samples_still_count(tmp_path: Path):
    model, batch = timm_vit(), images(4)
    batch[1, 0, 3, 3] = torch.nan
    result = profile(model, [batch], ["token_similarity", "effective_rank"])
    assert result.curve().samples.tolist() == [3] * (DEPTH + 1)
    assert any("up to 1 of 4 samples" in note for note in result.notes)
    clean = profile(model, [torch.cat([batch[:1], batch[2:]])], ["token_similarity"])
    np.testing.assert_allclose(result.curve().mean, clean.curve().mean, rtol=1e-5)
    broken = timm_vit()
    nn.init.constant_(broken.blocks[1].mlp.fc2.bias, torch.nan)
    result = profile(broken, [images()])
    assert np.isnan(result.curve().mean).tolist() == [False, False, True, True]
    assert result.curve().samples.tolist() == [3, 3, 0, 0]
    assert any("layers 2 to 3" in note for note in result.notes)
    result.save(tmp_path)
    assert np.isnan(Profile.load(tmp_path).curve().mean[-1])
    assert json.loads((tmp_path / "profile.json").read_text())["profiles"][0]["curves"][0]["mean"][-1] is None


def test_a_text_of_one_word_is_undefined_and_said_so():
    result = profile(TEXT["BERT"](), [text_batch((12, 3, 9))], ["token_similarity"])
    assert result.curve().samples.tolist() == [2] * (DEPTH + 1)
    assert "up to 1 of 3 samples" in result.notes[0]
    with pytest.raises(InputError, match="nothing can be measured of BertModel: no sample has tokens that count"):
        profile(TEXT["BERT"](), [text_batch((2, 2))])


def test_wrong_data_for_a_model_gets_one_clear_line():
    with pytest.raises(InputError, match="reads texts, and the data are images"):
        profile(TEXT["BERT"](), [images()])
    with pytest.raises(InputError, match="reads images, and the data are texts"):
        profile(timm_vit(), [text_batch()])
    with pytest.raises(InputError, match=r"expected images \(B, C, H, W\)"):
        profile(timm_vit(), [torch.zeros(3, 16, 16)])
    with pytest.raises(InputError, match="no samples"):
        profile(timm_vit(), [])
    with pytest.raises(InputError, match="did you mean 'token_similarity'"):
        profile(timm_vit(), [images()], ["token_similarty"])
    with pytest.raises(InputError, match=r"make no grid.*prefix="):
        profile(timm_vit(), [images()], prefix=0)
    with pytest.raises(InputError, match="batches differ"):
        profile(timm_vit(dynamic_img_size=True), [images(), images(3, 32, 32)])
    with pytest.raises(InputError, match="between 0 and 1"):
        profile(timm_vit(), [images()], mask_ratio=1.0)


def test_groups_and_names_choose_measures():
    assert choose(["token_similarity"]) == ("token_similarity",)
    assert set(choose(["pairs", "spectrum"])) == {"absolute_similarity", "spectrum"}
    assert choose(["all"]) == tuple(DEFINITIONS)


def test_memory_grows_by_the_numbers_of_a_sample_alone():
    live: list[int] = []
    model = timm_vit()
    gc.freeze()  # what there is already need not be looked through

    def loader() -> Any:
        for seed in range(4):
            gc.collect()
            live.append(sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor))
            yield images(4, seed=seed)

    result = profile(model, loader(), ["all"])
    gc.unfreeze()
    assert live[-1] - live[1] <= 4 * 4 * len(result.keys)
