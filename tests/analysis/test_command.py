"""The verb, from names on the command line to files: what it accepts, writes and refuses."""

import importlib.util
import json
import pydoc_data.topics
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch import nn

from bamboo.analysis import Comparison, Profile, profile
from bamboo.analysis.command import maps_of, profile_command
from bamboo.analysis.data_sources import open_data
from bamboo.analysis.model_sources import fresh_copy, open_model, split_label
from bamboo.analysis.profiling import _take
from bamboo.analysis.recording import Key
from bamboo.analysis.report import summary_rows, write_report
from bamboo.errors import InputError
from bamboo.files import write_weights
from bamboo.shapes import Shape
from bamboo.vision.mae import build_mae
from tests.browser import open_page

from .tiny import image, text

ARGUMENTS = {"shape": {"depth": 3, "width": 32, "heads": 4}, "image_size": 16, "patch_size": 4, "in_chans": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    decoder = {"depth": 1, "width": 16, "heads": 4}
    mae = build_mae(Shape(3, 32, 4), 16, 4, in_chans=1, decoder_shape=Shape(**decoder))
    path = tmp_path_factory.mktemp("run") / "mae.safetensors"
    return write_weights(path, mae.state_dict(), {**ARGUMENTS, "decoder_shape": decoder})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = sorted(set(re.findall(r"[a-z]+", pydoc_data.topics.topics["class"].lower())))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    text("Bert", vocab_size=len(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def novel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name in ("class", "if", "for"):
        (folder / f"{name}.txt").write_text(pydoc_data.topics.topics[name])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(load_sample_images().images):
        for j in range(3):
            Image.fromarray(picture[:, j * 100 : j * 100 + 300]).save(folder / f"{i}{j}.png")
    return folder


def run(models: list[Any], data: Any, out: Path, **kwargs: Any) -> Comparison:
    small = {"samples": 6, "batch_size": 4, "measures": ["token_similarity"], "pictures": 0}
    profile_command([str(model) for model in models], data=str(data), out=out, **{**small, **kwargs})
    return Comparison.load(out)


def test_everything_is_written_and_the_summary_printed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    groups = ["stream", "branches", "attention"]
    found = run([f"mine={checkpoint}"], "digits", tmp_path, baseline=True, measures=groups, pictures=2)
    assert [p.label for p in found.profiles] == ["mine", "mine (fresh)"]
    assert [p.baseline for p in found.profiles] == [False, True]
    names = {path.name for path in tmp_path.iterdir()}
    figures = (
        "shares",
        "similarity",
        "measures",
        "spectra",
        "maps_1",
        "maps_2",
    )
    numbers = {"profile.json", "profile.csv", "samples.npz", "report.html"}
    assert names == numbers | {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")}
    printed = capsys.readouterr().out
    last = {name: found.profiles[0].curve(f"{name}_similarity").mean[-1] for name in ("token", "between", "excess")}
    line = r"mine +3 +6 +{token:.3f} .* {between:.3f} +{excess:.3f} ".format(**last)
    assert re.search(line, printed), printed
    assert str(tmp_path / "report.html") in printed
    page = (tmp_path / "report.html").read_text()
    for said in (
        "What similarity is made of",
        "Similarity within samples, between them",
        "1/(n(n−1))",
        "torch",
        "mask ratio",
        "mine (fresh)",
    ):
        assert said in page
    assert not re.search(r"(src|href)=(?![\"']data:)", page)
    for path in tmp_path.glob("*.png"):
        assert Image.open(path).size[0] > 300


def test_command_gives_the_profile_of_the_python_function(checkpoint: Path, tmp_path: Path):
    found = run([checkpoint], "digits", tmp_path).profiles[0]
    opened = open_model(str(checkpoint))
    assert opened.label == "mae"
    direct = profile(opened.model, open_data("digits", opened, 6, 3), ["token_similarity"])
    np.testing.assert_allclose(found.values, direct.values, rtol=1e-4)


def test_blocks_and_prefix_can_be_named(checkpoint: Path, tmp_path: Path):
    """As the errors about models of several stacks, and of tokens that make no grid, advise."""
    swin, options = ["timm:swin_tiny_patch4_window7_224@random"], {"measures": ["stream"], "pictures": 1}
    with pytest.raises(InputError, match="merges tokens between"):
        run(swin, "digits", tmp_path / "a")
    with pytest.raises(InputError, match=r"did you mean 'layers\.0\.blocks'"):
        run(swin, "digits", tmp_path / "a", blocks="layers.0.block")
    with pytest.raises(InputError, match=r"17 tokens make no grid.*prefix="):
        run([checkpoint], "digits", tmp_path / "b", prefix=0, **options)
    found = run([checkpoint], "digits", tmp_path / "b", blocks="blocks", prefix=1, **options).profiles[0]
    assert (found.settings["blocks"], found.settings["prefix_tokens"]) == ("blocks", 1)
    assert (tmp_path / "b" / "maps_1.png").is_file()
    opened = open_model(str(checkpoint))
    with pytest.raises(InputError, match=r"17 tokens make no grid"):
        maps_of(opened, "digits", 1, prefix=0)
    with pytest.raises(InputError, match="unknown list of blocks 'none'"):
        maps_of(opened, "digits", 1, blocks="none")


def test_a_curve_that_starts_above_a_level_is_said_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keys = tuple(Key("stream", "token_similarity", layer) for layer in range(3))
    curve = np.tile(np.array([0.6, 0.4, 0.95], np.float32), (4, 1))
    comparison = Comparison((Profile("m", 2, keys, curve),))
    assert summary_rows(comparison)[1][-3:-1] == ["starts above", "2"]
    page = write_report(tmp_path / "report.html", comparison)[0].read_text()
    assert "<td>starts above</td>" in page


def test_the_bar_obeys_tqdm_disable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    batches = [torch.zeros(2, 3, 8, 8)] * 3
    for environment, shown in (({}, True), ({"TQDM_DISABLE": "1"}, False)):
        spec = importlib.util.find_spec("tqdm.std")
        module = importlib.util.module_from_spec(spec)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            spec.loader.exec_module(module)  # tqdm reads the environment when it is imported
            patch.setattr("bamboo.analysis.profiling.tqdm", module.tqdm)
            assert len(list(_take(batches, None, progress=True))) == 3
        assert bool(capsys.readouterr().err) == shown


@pytest.mark.parametrize("safe", [True, False])
def test_folders_in_shards_are_read(safe: bool, tmp_path: Path):
    model, folder = image("ViT", num_channels=1), tmp_path / "shards"
    model.save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    if not safe:  # as transformers wrote it before safetensors
        told = json.loads(index.read_text())
        for file in folder.glob("*.safetensors"):
            torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
            file.unlink()
        told["weight_map"] = {k: f"pytorch_{Path(v).stem}.bin" for k, v in told["weight_map"].items()}
        index.unlink()
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps(told))
    shards = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    assert len(shards) > 2
    opened = open_model(str(folder)).model
    with torch.no_grad():
        pixels = torch.rand(2, 1, 16, 16)
        torch.testing.assert_close(opened.forward_features(pixels), model(pixels).last_hidden_state)
    shards[1].unlink()
    with pytest.raises(InputError, match=r"shards is .*: [\w.]+ is missing there"):
        open_model(str(folder))


def test_photos_of_a_plain_folder_are_all_read(photos: Path, tmp_path: Path):
    found = run(["timm:vit_tiny_patch16_224@random"], photos, tmp_path, image_size=32, pictures=1)
    assert len(found.profiles[0].values) == 6
    assert found.profiles[0].settings["source"] == "timm:vit_tiny_patch16_224@random"
    assert (tmp_path / "maps_1.png").is_file()


def test_images_of_a_plain_folder_are_spread_evenly_over_its_classes(checkpoint: Path, tmp_path: Path):
    for label in range(10):
        (tmp_path / f"class{label}").mkdir()
        for i in range(40):
            Image.new("L", (16, 16), 20 * label).save(tmp_path / f"class{label}" / f"{i:02}.png")
    batches = open_data(str(tmp_path), open_model(str(checkpoint)), 64)
    found = torch.cat([batch["image"] for batch in batches])[:, 0, 0, 0] // 20
    assert found.bincount().tolist() == [7, 6, 7, 6, 6, 7, 6, 7, 6, 6]


def test_validation_images_are_read_where_there_are_any(checkpoint: Path, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8)
    for split, images in {"train": pixels[:7], "val": pixels[7:]}.items():
        for i, picture in enumerate(images):
            path = tmp_path / "data" / split / f"n{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    assert len(run([checkpoint], tmp_path / "data", tmp_path / "out").profiles[0].values) == 3


def test_masked_length_is_the_same_for_one_seed(checkpoint: Path, tmp_path: Path):
    values = [run([checkpoint], "digits", tmp_path / n, mask_ratio=0.75).profiles[0].values for n in "ab"]
    np.testing.assert_array_equal(*values)
    assert not np.allclose(values[0], run([checkpoint], "digits", tmp_path / "c").profiles[0].values)


def test_text_models_read_files_and_folders(bert: Path, novel: Path, tmp_path: Path):
    groups = ["stream", "attention"]
    found = run([f"hf:{bert}"], novel, tmp_path / "a", measures=groups, max_length=24, baseline=True)
    assert len(found.profiles[0].values) == 6
    assert found.profiles[0].has("cls_similarity")
    assert (tmp_path / "a" / "measures.png").is_file()
    single = run([str(bert)], novel / "class.txt", tmp_path / "b", max_length=24)
    assert len(single.profiles[0].values) == 6
    (tmp_path / "short.md").write_text("a class is a thing")
    assert len(run([f"hf:{bert}"], tmp_path / "short.md", tmp_path / "c", max_length=24).profiles[0].values) == 1


def test_texts_are_read_line_by_line_if_asked_for(bert: Path, tmp_path: Path):
    (tmp_path / "lines.txt").write_text("a class\n\n  \nif the name\r\nfor each of the\nclass\n")
    opened = open_model(f"hf:{bert}")
    (batch,) = open_data(str(tmp_path / "lines.txt"), opened, 9, max_length=24, by_line=True)
    expected = opened.tokenizer(["a class", "if the name", "for each of the", "class"], padding=True)
    assert batch["input_ids"].tolist() == expected["input_ids"]
    (batch,) = open_data(str(tmp_path / "lines.txt"), opened, 2, max_length=24, by_line=True)
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]
    found = run([f"hf:{bert}"], tmp_path / "lines.txt", tmp_path / "out", max_length=24, by_line=True).profiles[0]
    assert len(found.values) == 4
    assert found.settings["data"] == f"{tmp_path / 'lines.txt'}, line by line"


def test_pieces_of_text_do_not_depend_on_the_batch_size(bert: Path, novel: Path, tmp_path: Path):
    one, other = (run([f"hf:{bert}"], novel, tmp_path / str(n), batch_size=n, max_length=24) for n in (2, 5))
    np.testing.assert_allclose(one.profiles[0].values, other.profiles[0].values, rtol=1e-4)


def test_vision_models_of_hugging_face_are_opened(tmp_path: Path):
    for kind in ("ViT", "DeiT"):
        image(kind, num_channels=1).save_pretrained(tmp_path / kind)
    found = run([f"hf:{tmp_path / 'ViT'}", f"hf:{tmp_path / 'DeiT'}"], "digits", tmp_path / "out")
    assert [p.label for p in found.profiles] == ["ViT", "DeiT"]
    assert "ImageNet" in found.profiles[1].notes[0]
    (tmp_path / "config").mkdir()
    shutil.copy(tmp_path / "DeiT" / "config.json", tmp_path / "config")
    with pytest.raises(InputError, match="for random weights say hf:"):
        run([f"hf:{tmp_path / 'config'}"], "digits", tmp_path / "out")
    assert len(run([f"hf:{tmp_path / 'config'}@random"], "digits", tmp_path / "out").profiles) == 1


def test_timm_weights_of_a_file_are_used(tmp_path: Path):
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    opened = open_model(f"a=timm:vit_tiny_patch16_224@{tmp_path / 'w.safetensors'}")
    assert opened.label == "a"
    assert torch.equal(opened.model.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_timm_models_that_are_no_plain_vits_are_loaded(tmp_path: Path):
    name = "eva02_tiny_patch14_224"
    model = timm.create_model(name, depth=12)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    opened = open_model(f"timm:{name}@{tmp_path / 'w.safetensors'}")
    assert torch.equal(opened.model.blocks[3].norm1.weight, model.blocks[3].norm1.weight)
    assert torch.equal(opened.model.blocks[3].attn.proj.weight, model.blocks[3].attn.proj.weight)
    assert not torch.equal(fresh_copy(opened).model.blocks[3].attn.proj.weight, model.blocks[3].attn.proj.weight)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"cannot be loaded.*@FILE"):
        open_model(f"timm:{name}@{tmp_path / 'other.safetensors'}")
    with pytest.raises(InputError, match=r"no/file is missing"):
        open_model(f"timm:{name}@no/file")


@pytest.mark.parametrize("source", ["checkpoint", "timm:vit_tiny_patch16_224@random", "bert"])
def test_baseline_has_the_architecture_and_other_weights(source: str, request: pytest.FixtureRequest):
    opened = open_model(source if ":" in source else str(request.getfixturevalue(source)))
    fresh = fresh_copy(opened, seed=5)
    again = fresh_copy(opened, seed=5)
    own, new, twin = (dict(m.model.named_parameters()) for m in (opened, fresh, again))
    assert own.keys() == new.keys()
    assert {n: p.shape for n, p in own.items()} == {n: p.shape for n, p in new.items()}
    matrices = [n for n, p in own.items() if p.dim() == 2 and p.requires_grad]
    assert all(not torch.equal(own[n], new[n]) and torch.equal(new[n], twin[n]) for n in matrices)
    if source == "checkpoint":
        assert torch.allclose(own["pos_embed"], new["pos_embed"])
        assert new["blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(np.sqrt(2 / (32 + 128)), rel=0.05)


def test_labels_are_told_from_paths(tmp_path: Path):
    assert split_label("a=timm:x") == ("a", "timm:x")
    assert split_label("runs/lr=1/last.ckpt") == ("", "runs/lr=1/last.ckpt")
    odd = tmp_path / "epoch=3.ckpt"
    odd.touch()
    assert split_label(str(odd)) == ("", str(odd))


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "unknown timm name": (["timm:vit_tiny_patch16_223@random", "digits"], {}, "did you mean 'vit_tiny"),
    "stages": (["timm:swin_tiny_patch4_window7_224@random", "digits"], {}, "merges tokens between"),
    "stages with weights": (["timm:swin_tiny_patch4_window7_224", "digits"], {}, "merges tokens between"),
    "convolutions": (["timm:resnet18@random", "digits"], {}, "no list of transformer blocks"),
    "missing file": (["nothing.ckpt", "digits"], {}, "nothing.ckpt is missing"),
    "unknown name of the hub": (["hf:nobody/nothing", "digits"], {}, "hf:nobody/nothing is no folder here"),
    "text for images": (["CHECKPOINT", "NOVEL"], {}, "mae reads images, and .* holds none"),
    "images for text": (["hf:BERT", "digits"], {}, "reads texts, and digits holds none"),
    "unknown data": (["CHECKPOINT", "digit"], {}, "did you mean 'digits'"),
    "missing data": (["CHECKPOINT", "no/where"], {}, "no/where is missing"),
    "neither": (["CHECKPOINT", "RUN"], {}, "holds neither images nor texts"),
    "same label": (["CHECKPOINT", "CHECKPOINT", "digits"], {}, "two models are called 'mae'"),
    "unknown measure": (["CHECKPOINT", "digits"], {"measures": ["strem"]}, "did you mean 'stream'"),
    "no samples": (["CHECKPOINT", "digits"], {"samples": 0}, "samples must be positive"),
    "device": (["CHECKPOINT", "digits"], {"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
    "text too long": (["hf:BERT", "NOVEL"], {"max_length": 500}, "between 3 and the 40 tokens"),
    "lines of images": (["CHECKPOINT", "digits"], {"by_line": True}, "--by-line reads the lines of text files"),
    "masked text": (["hf:BERT", "NOVEL"], {"mask_ratio": 0.5, "max_length": 24}, "masking needs a timm"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_gets_one_line_and_writes_nothing(
    kind: str, checkpoint: Path, bert: Path, novel: Path, tmp_path: Path
):
    given, options, line = REFUSED[kind]
    names = {"CHECKPOINT": checkpoint, "BERT": bert, "NOVEL": novel, "RUN": checkpoint.parent}
    *models, data = (re.sub("[A-Z]{3,}", lambda found: str(names[found[0]]), text) for text in given)
    with pytest.raises(InputError, match=line) as caught:
        run(models, data, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_report_opens_offline_without_an_error(checkpoint: Path, tmp_path: Path):
    run([checkpoint], "digits", tmp_path / "out", measures=["stream", "attention"], pictures=1)
    page = open_page(tmp_path / "out" / "report.html", tmp_path)
    assert page.images == [True] * len(list((tmp_path / "out").glob("*.svg")))
    assert not page.console
    assert not page.requests


def test_saved_profiles_are_plain_json(checkpoint: Path, tmp_path: Path):
    run([checkpoint], "digits", tmp_path)
    told = json.loads((tmp_path / "profile.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert told["profiles"][0]["settings"]["data"] == "digits"
    assert isinstance(Profile.load(tmp_path), Profile)
    assert isinstance(open_model(str(checkpoint)).model, nn.Module)
