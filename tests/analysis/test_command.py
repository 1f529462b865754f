"""The verb, from names on the command line to files: what it accepts, writes and refuses."""

import importlib.util
import json
import pydoc_data.topics
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
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

from bamboo.analysis import Comparison, Profile, profile
from bamboo.analysis.command import maps_of, profile_command
from bamboo.analysis.data_sources import open_data
from bamboo.analysis.measures.similarity_split import SPLIT
from bamboo.analysis.model_sources import fresh_copy, open_model, split_label
from bamboo.analysis.plots import STYLE
from bamboo.analysis.profiling import _take
from bamboo.analysis.recording import Key
from bamboo.analysis.report import summary_rows
from bamboo.errors import InputError
from bamboo.files import write_weights
from bamboo.shapes import Shape
from bamboo.vision.images import EXTENSIONS
from bamboo.vision.mae import build_mae
from tests.browser import open_page

from .tiny import image, text

ARGUMENTS = {"shape": {"depth": 3, "width": 32, "heads": 4}, "image_size": 16, "patch_size": 4, "in_chans": 1}
DECODER = {"depth": 1, "width": 16, "heads": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mae = build_mae(Shape(3, 32, 4), 16, 4, in_chans=1, decoder_shape=Shape(**DECODER))
    path = tmp_path_factory.mktemp("run") / "mae.safetensors"
    return write_weights(path, mae.state_dict(), {**ARGUMENTS, "decoder_shape": DECODER})


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


def measured(model: Any, data: Any, **kwargs: Any) -> Profile:
    """What the command measures, without its files."""
    opened = open_model(str(model), kwargs.pop("image_size", None))
    options = {"samples": 6, "batch_size": 4, "max_length": 24, **kwargs}
    return profile(opened.model, open_data(str(data), opened, **options), ["token_similarity"])


@dataclass(frozen=True)
class Written:
    folder: Path
    printed: str
    comparison: Comparison


@pytest.fixture(scope="module")
def written(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("profile")
    measures = [*SPLIT, "token_similarity", "spectrum", "attention_entropy"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setitem(STYLE, "savefig.dpi", 60)  # a third of the time
        run([f"mine={checkpoint}"], "digits", folder, baseline=True, measures=measures, pictures=1)
    return Written(folder, printed.getvalue(), Comparison.load(folder))


def test_everything_is_written_and_the_summary_printed(written: Written):
    model, fresh = written.comparison.profiles
    assert (model.label, model.baseline, fresh.label, fresh.baseline) == ("mine", False, "mine (fresh)", True)
    figures = ("shares", "similarity", "measures", "spectra", "maps_1", "maps_2")  # of one depth, so none over both
    numbers = {"profile.json", "profile.csv", "samples.npz", "report.html"}
    names = {path.name for path in written.folder.iterdir()}
    assert names == numbers | {f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")}
    last = {name: model.curve(f"{name}_similarity").mean[-1] for name in ("token", "between", "excess")}
    line = r"mine +3 +6 +{token:.3f} .* {between:.3f} +{excess:.3f} ".format(**last)
    assert re.search(line, written.printed), written.printed
    assert str(written.folder / "report.html") in written.printed
    saved = json.loads((written.folder / "profile.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["profiles"][0]["settings"]["data"] == "digits"


def test_the_report_says_everything_and_opens_offline_without_an_error(written: Written, tmp_path: Path):
    page = (written.folder / "report.html").read_text()
    for words in (
        "What similarity is made of",
        "Similarity within samples, between them",
        "1/(n(n−1))",
        "torch",
        "mask ratio",
        "mine (fresh)",
    ):
        assert words in page
    seen = open_page(written.folder / "report.html", tmp_path)
    assert seen.images == [True] * len(list(written.folder.glob("*.svg")))
    assert not seen.console
    assert not seen.requests


def test_command_gives_the_profile_of_the_python_function(checkpoint: Path, tmp_path: Path):
    options = {"mask_ratio": 0.5, "tokens": "all", "blocks": "blocks", "prefix": 2, "precision": "bf16", "seed": 3}
    found = run([checkpoint], "digits", tmp_path, **options).profiles[0]
    opened = open_model(str(checkpoint))
    assert opened.label == found.label == "mae"
    direct = profile(opened.model, open_data("digits", opened, 6, 4), ["token_similarity"], **options)
    np.testing.assert_allclose(found.values, direct.values, rtol=1e-2)
    assert found.settings | {"source": "", "data": ""} == direct.settings | {"source": "", "data": ""}
    again = run([checkpoint], "digits", tmp_path, **options | {"seed": 4}).profiles[0]
    assert not np.allclose(found.values, again.values, rtol=1e-2)


def test_models_of_two_depths_are_also_drawn_over_their_blocks(checkpoint: Path, tmp_path: Path):
    shallow = build_mae(Shape(2, 32, 4), 16, 4, in_chans=1, decoder_shape=Shape(1, 16, 4))
    arguments = ARGUMENTS | {"shape": {"depth": 2, "width": 32, "heads": 4}, "decoder_shape": DECODER}
    other = write_weights(tmp_path / "shallow.safetensors", shallow.state_dict(), arguments)
    run([checkpoint, other], "digits", tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"similarity", "absolute_depth"}


def test_a_wrong_prefix_is_refused_and_maps_refuse_it_too(checkpoint: Path):
    opened = open_model(str(checkpoint))
    with pytest.raises(InputError, match=r"17 tokens make no grid.*prefix="):
        profile(opened.model, open_data("digits", opened, 2), ["stream"], prefix=0)
    with pytest.raises(InputError, match=r"17 tokens make no grid"):
        maps_of(opened, "digits", 1, prefix=0)
    with pytest.raises(InputError, match="unknown list of blocks 'none'"):
        maps_of(opened, "digits", 1, blocks="none")


def test_a_curve_that_starts_above_a_level_is_said_to():
    keys = tuple(Key("stream", "token_similarity", layer) for layer in range(3))
    curve = np.tile(np.array([0.6, 0.4, 0.95], np.float32), (4, 1))
    assert summary_rows(Comparison((Profile("m", 2, keys, curve),)))[1][-3:-1] == ["starts above", "2"]


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
    with pytest.raises(InputError, match=f"{shards[1].name} is missing"):
        open_model(str(folder))


def test_photos_of_a_plain_folder_are_all_read(photos: Path):
    assert len(measured("timm:vit_tiny_patch16_224@random", photos, image_size=32).values) == 6


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_kind_of_image_that_can_be_trained_on_is_profiled(checkpoint: Path, tmp_path: Path, ending: str):
    for i in range(2):
        Image.new("L", (16, 16), 20 * i).save(tmp_path / f"{i}{ending}")
    assert sum(len(batch["image"]) for batch in open_data(str(tmp_path), open_model(str(checkpoint)), 4)) == 2


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
    assert len(measured(checkpoint, tmp_path / "data").values) == 3


def test_text_models_read_files_and_folders(bert: Path, novel: Path, tmp_path: Path):
    found = run([f"hf:{bert}"], novel, tmp_path / "out", measures=["cls_similarity"], max_length=24, baseline=True)
    assert [len(p.values) for p in found.profiles] == [6, 6]
    assert found.profiles[0].has("cls_similarity")
    assert len(measured(bert, novel / "class.txt").values) == 6
    (tmp_path / "short.md").write_text("a class is a thing")
    assert len(measured(bert, tmp_path / "short.md").values) == 1


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


def test_pieces_of_text_do_not_depend_on_the_batch_size(bert: Path, novel: Path):
    one, other = (measured(bert, novel, batch_size=size) for size in (2, 5))
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4)


def test_vision_models_of_hugging_face_are_opened(tmp_path: Path):
    for kind in ("ViT", "DeiT"):
        image(kind, num_channels=1).half().save_pretrained(tmp_path / kind)
    vit, deit = (open_model(f"hf:{tmp_path / kind}") for kind in ("ViT", "DeiT"))
    assert (vit.label, deit.label) == ("ViT", "DeiT")
    assert "ImageNet" in deit.notes[0]
    assert {part.dtype for opened in (vit, deit) for part in opened.model.parameters()} == {torch.float32}
    assert len(measured(tmp_path / "DeiT", "digits").values) == 6
    (tmp_path / "config").mkdir()
    shutil.copy(tmp_path / "DeiT" / "config.json", tmp_path / "config")
    with pytest.raises(InputError, match="for random weights say hf:"):
        open_model(f"hf:{tmp_path / 'config'}")
    assert open_model(f"hf:{tmp_path / 'config'}@random").size == (16, 16)


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


def test_a_baseline_is_the_mean_and_the_range_of_five_networks(written: Written, checkpoint: Path):
    fresh = written.comparison.profiles[1]
    opened = open_model(str(checkpoint))
    batches = list(open_data("digits", opened, 6, 4))
    networks = [fresh_copy(opened, seed).model for seed in range(5)]
    profiles = [profile(network, batches, ["token_similarity", "between_similarity"]) for network in networks]
    for name in ("token_similarity", "between_similarity"):
        means = np.stack([profile.curve(name).mean for profile in profiles])
        curve = fresh.curve(name)
        np.testing.assert_allclose(curve.mean, means.mean(0), atol=1e-6)
        np.testing.assert_allclose(curve.low, means.min(0), atol=1e-6)
        np.testing.assert_allclose(curve.high, means.max(0), atol=1e-6)
        assert (curve.low < curve.high).all()
    assert fresh.summary()["samples"] == 6


def test_labels_are_told_from_paths(tmp_path: Path):
    assert split_label("a=timm:x") == ("a", "timm:x")
    assert split_label("runs/lr=1/last.ckpt") == ("", "runs/lr=1/last.ckpt")
    odd = tmp_path / "epoch=3.ckpt"
    odd.touch()
    assert split_label(str(odd)) == ("", str(odd))


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "unknown timm name": (["timm:vit_tiny_patch16_223@random", "digits"], {}, "did you mean 'vit_tiny"),
    "stages": (["timm:swin_tiny_patch4_window7_224@random", "digits"], {}, "merges tokens between"),
    "stage of a wrong name": (
        ["timm:swin_tiny_patch4_window7_224@random", "digits"],
        {"blocks": "layers.0.block"},
        r"did you mean 'layers\.0\.blocks'",
    ),
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
