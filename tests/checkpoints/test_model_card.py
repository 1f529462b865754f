"""A model card says what a checkpoint and its run hold, in the hub's words, and nothing of the person who trained."""

import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from bamboo.checkpoints import export, read_file, write_card
from bamboo.checkpoints.trained import hub_name, plain
from bamboo.cli import main
from bamboo.shapes import Patches, Shape, encoder_flops
from bamboo.vision.mae import build_mae
from tests.finetune import runs as classifiers
from tests.finetune.glue.tiny import write_encoder
from tests.runs import CONFIGS, scalars
from tests.text import runs as texts

SHAPE = Shape(2, 32, 2)
ENDED = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The last checkpoint of a run of every kind, by name."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert classifiers.pretrain(*ENDED) == 0
        last = {"mae": classifiers.last(folder, "quickstart"), "image": classifiers.last(folder, "digits")}
        assert classifiers.run("fit", *ENDED, f"--model.init_args.encoder={last['mae']}", config="digits") == 0
        steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2"]
        assert texts.fit(*steps, "--data.init_args.vocab_size=500", "--data.init_args.batch_size=8") == 0
        rows = [f"{label}\tword{number} is {label}\n" for number in range(8) for label in ("fine", "awful")]
        (folder / "reviews.tsv").write_text("label\ttext\n" + "".join(rows))
        files = [f"--data.init_args.{split}={folder / 'reviews.tsv'}" for split in ("train", "val")]
        options = [f"--model.init_args.encoder={write_encoder(folder / 'encoder')}", "--trainer.precision=32-true"]
        options += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.init_args.classes=[fine, awful]"]
        assert main(["fit", "--config", str(CONFIGS / "finetune/texts.yaml"), *options, *files]) == 0
    return last | {"text": texts.last(folder), "reviews": texts.last(folder, "texts")}


def command(source, out, *options):
    assert main(["export", str(source), "--out", str(out), *options]) == 0
    return ModelCard.load(out / "README.md")


def copied(checkpoint, folder, encoder="scratch", **data):
    """A copy of a run, with another start and other data in its configuration; its last checkpoint."""
    run = shutil.copytree(checkpoint.parent.parent, folder)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["encoder"] = encoder
    config["data"] = {"class_path": "bamboo.vision.data.ImageFolder", "init_args": data}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run / "checkpoints/last.ckpt"


def rows(card):
    """The rows of all tables of two columns."""
    return dict(re.findall(r"^\| `?(.+?)`? \| (.+) \|$", card.content, re.MULTILINE))


def configured(card):
    return yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)[0])


def results(card):
    return {result.metric_name: result.metric_value for result in card.data.eval_results or ()}


@pytest.mark.parametrize(
    ("kind", "format", "library", "task", "call"),
    [
        ("mae", "timm", "timm", "image-feature-extraction", "timm.create_model("),
        ("mae", "hf", "transformers", "image-feature-extraction", "transformers.ViTMAEForPreTraining."),
        ("image", "hf", "timm", "image-classification", "transformers.AutoModelForImageClassification."),
        ("text", "hf", "transformers", "fill-mask", "transformers.AutoModelForMaskedLM."),
        ("reviews", "auto", "transformers", "text-classification", "transformers.AutoModelForSequenceClassification."),
    ],
)
def test_the_hub_reads_what_every_kind_of_model_is(trained, tmp_path, monkeypatch, kind, format, library, task, call):
    card = command(trained[kind], tmp_path / "shared", "--format", format, "--license", "Apache-2.0")
    said = card.data.to_dict()
    assert said.pop("model-index")[0]["name"] == "shared"
    assert said == {"license": "apache-2.0", "library_name": library, "pipeline_tag": task, "tags": ["bamboo"]}
    assert "Licence: apache-2.0." in card.text
    shown, weights = rows(card), load_file(tmp_path / "shared/model.safetensors")
    assert shown["depth x width"] == ("2x64" if kind == "reviews" else "2x32")
    assert shown["parameters"] == f"{sum(tensor.numel() for tensor in weights.values()):,}"
    if task.startswith("image"):
        flops = encoder_flops(SHAPE, Patches.of(16, 4, 1))
        assert shown["FLOPs of the encoder for an image"] == f"{flops / 1e9:.4g} GFLOPs"
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert call in code
    exec(code, {})


def test_numbers_and_recipe_are_those_of_the_checkpoint_and_of_its_run(trained, tmp_path):
    card, content = command(trained["mae"], tmp_path / "mae"), read_file(trained["mae"])
    accuracy, shown = content["callbacks"]["NeighbourProbe"]["accuracy"], rows(card)
    assert set(accuracy) == {"raw pixels", "untrained encoder", "trained encoder"}
    for name, value in accuracy.items():
        assert shown[f"nearest neighbours, {name}, when last measured"] == f"{value:.5g}"
    loss = scalars(trained["mae"].parents[1], "val/loss")[content["global_step"] - 1]
    assert shown["val/loss"] == f"{loss:.5g}"
    assert results(card) == {"probe/nearest_neighbours": pytest.approx(accuracy["trained encoder"], abs=1e-6)}
    lonely = command(shutil.copy(trained["mae"], tmp_path / "last.ckpt"), tmp_path / "mae")
    assert "Data: Digits." in lonely.text
    assert ("val/loss" in rows(lonely), lonely.data.eval_results) == (False, None)
    recipe = configured(card)
    assert "Masked autoencoding (He et al. 2022), without labels. Data: Digits." in card.text
    assert recipe["model"]["recipe"]["base_lr"] == content["hyper_parameters"]["recipe"]["base_lr"]
    assert (recipe["steps"], recipe["batch"]) == (content["global_step"], content["batch"])
    assert recipe["data"]["class_path"] == "bamboo.vision.data.Digits"
    assert recipe["data"]["init_args"]["batch_size"] == 128
    assert recipe["trainer"]["max_epochs"] == 2


def test_values_of_other_weights_are_left_out(trained, tmp_path):
    checkpoint = copied(trained["image"], tmp_path / "run")
    for events in (tmp_path / "run").glob("events*"):
        events.unlink()
    steps, table = read_file(checkpoint)["global_step"], tmp_path / "run/metrics.csv"
    other = "step,val/top1,train/loss\n3,0.25,\n"
    table.write_text(f"{other}{steps - 1},0.75,1.0\n{steps},0.5,1.0\n")
    card = command(checkpoint, tmp_path / "out")
    assert results(card) == {"val/top1": 0.75}
    assert "train/loss" not in rows(card)
    for text in (other, "a table,of another kind\nand,1\n"):
        table.write_text(text)
        card = command(checkpoint, tmp_path / "out")
        assert card.data.eval_results is None
        assert "## Measured\n\nNothing is known." in card.text


def test_what_is_not_known_is_said_to_be_unknown(tmp_path):
    shapes = {"shape": vars(Shape(1, 64, 1)), "decoder_shape": vars(Shape(1, 32, 1))}
    arguments = {**shapes, "image_size": 32, "patch_size": 8}
    weights = {f"mae.{key}": tensor for key, tensor in build_mae(**arguments).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": arguments}, tmp_path / "last.ckpt")
    card = command(tmp_path / "last.ckpt", tmp_path / "out")
    for said in ("without labels. Data: not known here.", "Nothing is known.", "Licence: none was stated."):
        assert said in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    again = command(tmp_path / "out/model.safetensors", tmp_path / "again")
    assert "How it was trained is not known" in again.text
    (written,) = export(tmp_path / "last.ckpt", "reference", tmp_path)
    torch.save({"model": read_file(written)["model"]}, tmp_path / "mae_visualize.pth")  # nothing but weights
    card = command(tmp_path / "mae_visualize.pth", tmp_path / "out", "--format", "hf")
    for said in (
        "from `mae_visualize.pth`",
        "How it was trained is not known",
        "Not certain: the file has no head count",
    ):
        assert said in card.text
    assert (rows(card)["depth x width"], card.data.eval_results) == ("1x64", None)


def test_nothing_in_a_card_tells_where_the_person_keeps_things(trained, tmp_path):
    start, root = "/home/someone/secret/runs/first.ckpt", "/home/someone/secret/pictures/"
    checkpoint = copied(trained["image"], tmp_path / "run", start, root=root, shots=1)
    for name, path in {**trained, "private": checkpoint}.items():
        card = command(path, tmp_path / f"card-{name}")
        assert not re.search("home|someone|secret|pytest-of", card.content)  # the last in all folders of this test
        assert str(path.parents[3]) not in card.content
    assert "started from the weights of `first.ckpt`. Data: ImageFolder pictures." in card.text
    assert configured(card)["data"]["init_args"]["shots"] == 1


def test_names_on_the_hub_are_stated_to_the_hub(trained, tmp_path, monkeypatch):
    checkpoint = copied(trained["image"], tmp_path / "run", "hf:owner/encoder", root="hf:owner/pictures,train=all")
    said = command(checkpoint, tmp_path / "out").data
    assert (said.datasets, said.base_model) == (["owner/pictures"], "owner/encoder")
    assert {result.dataset_type for result in said.eval_results} == {"owner/pictures"}
    assert "started from" not in command(copied(trained["image"], tmp_path / "scratch"), tmp_path / "out").text
    (tmp_path / "owner/encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("hf:owner/encoder") is None  # but a folder here
    assert plain("hf:owner/encoder") == "encoder"


def test_a_card_depends_on_nothing_but_model_and_name_and_an_export_replaces_its_own(trained, tmp_path, capsys):
    first = command(trained["mae"], tmp_path / "a/same", "--license", "mit").content
    second = command(trained["mae"], tmp_path / "b/same", "--license", "mit").content
    assert first == second
    assert command(trained["image"], tmp_path / "a/same").content != first
    assert "share it by\n  hf upload NAMESPACE/NAME" in capsys.readouterr().out


def test_a_card_without_our_mark_is_left_as_it_is(trained, tmp_path, capsys):
    (tmp_path / "README.md").write_text("By hand.")
    assert main(["export", str(trained["mae"]), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no card of bamboo export" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(ValueError, match="is no card"):
        write_card(trained["mae"], tmp_path)
    assert (tmp_path / "README.md").read_text() == "By hand."


@pytest.mark.parametrize("license", ["mit\nbase_model: x", "mit licence", "", "- mit", "mit\n"])
def test_what_is_no_licence_is_said_in_one_line(trained, tmp_path, capsys, license):
    assert main(["export", str(trained["mae"]), "--out", str(tmp_path / "out"), f"--license={license}"]) == 2
    error = capsys.readouterr().err
    assert "no id of a licence" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_reference_format_has_no_card(trained, tmp_path, capsys):
    options = ["export", str(trained["mae"]), "--out", str(tmp_path), "--format", "reference"]
    assert main(options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]
    assert main([*options, "--license", "mit"]) == 2
    assert "leave --license out" in capsys.readouterr().err
