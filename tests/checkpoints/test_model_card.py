"""A model card says what a checkpoint and its run hold, in the hub's words, and nothing of the person who trained."""

import csv
import re
import shutil

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from bamboo.checkpoints import export, read_file, write_card
from bamboo.checkpoints.history import without_folders
from bamboo.cli import main
from bamboo.shapes import Patches, Shape, decoder_flops, encoder_flops
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
        mae = classifiers.last(folder, "quickstart")
        for pool, version in (("avg", 0), ("token", 1)):
            pooled = ["--model.init_args.encoder", str(mae), "--model.init_args.pool", pool]
            assert classifiers.run("fit", *ENDED, *pooled, config="digits") == 0
            assert classifiers.last(folder, "digits", version).is_file()
        steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2"]
        few = ["--data.init_args.vocab_size=500", "--data.init_args.batch_size=8", "--checkpoint.monitor=val/loss"]
        assert texts.fit(*steps, *few) == 0
        rows = [f"{label}\tword{number} is {label}\n" for number in range(8) for label in ("fine", "awful")]
        (folder / "reviews.tsv").write_text("label\ttext\n" + "".join(rows))
        files = [f"--data.init_args.{split}={folder / 'reviews.tsv'}" for split in ("train", "val")]
        options = [f"--model.init_args.encoder={write_encoder(folder / 'encoder')}", "--trainer.precision=32-true"]
        options += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.init_args.classes=[fine, awful]"]
        assert main(["fit", "--config", str(CONFIGS / "finetune/texts.yaml"), *options, *files]) == 0
    last = {"mae": mae, "avg": classifiers.last(folder, "digits"), "token": classifiers.last(folder, "digits", 1)}
    return last | {"text": texts.last(folder), "reviews": texts.last(folder, "texts")}


def reference(path):
    """A file in the layout of the MAE release, without a description of the model."""
    shape, decoder = vars(Shape(1, 64, 1)), vars(Shape(1, 32, 1))
    sizes = {"shape": shape, "image_size": 32, "patch_size": 8, "decoder_shape": decoder}
    weights = {f"mae.{key}": tensor for key, tensor in build_mae(**sizes).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": sizes}, path)
    (written,) = export(path, "reference", path.parent / "release")
    torch.save({"model": read_file(written)["model"]}, path)
    return path


def command(source, out, *options):
    assert main(["export", str(source), "--out", str(out), *options]) == 0
    return ModelCard.load(out / "README.md")


def copied(checkpoint, folder, **changes):
    """A copy of a run, with other sections in its configuration; its last checkpoint."""
    run = shutil.copytree(checkpoint.parent.parent, folder)
    config = yaml.safe_load((run / "config.yaml").read_text())
    for section, arguments in changes.items():
        config[section]["class_path"] = arguments.pop("class_path", config[section]["class_path"])
        config[section]["init_args"] |= arguments
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run / "checkpoints/last.ckpt"


def rows(card):
    """The rows of all tables of two columns."""
    return dict(re.findall(r"^\| `?(.+?)`? \| (.+) \|$", card.content, re.MULTILINE))


def results(card):
    return {result.metric_name: result.metric_value for result in card.data.eval_results or ()}


@pytest.mark.parametrize(
    ("kind", "format", "library", "task", "tags"),
    [
        ("mae", "timm", "timm", "image-feature-extraction", ["vision-transformer", "masked-autoencoder"]),
        ("mae", "hf", "transformers", "image-feature-extraction", ["vision-transformer", "masked-autoencoder"]),
        ("avg", "timm", "timm", "image-classification", ["vision-transformer"]),
        ("avg", "hf", "timm", "image-classification", ["vision-transformer"]),
        ("token", "hf", "transformers", "image-classification", ["vision-transformer"]),
        ("text", "hf", "transformers", "fill-mask", ["masked-language-modeling"]),
        ("reviews", "auto", "transformers", "text-classification", []),
    ],
)
def test_the_hub_reads_what_every_kind_of_model_is(trained, tmp_path, kind, format, library, task, tags):
    card = command(trained[kind], tmp_path / "shared", "--format", format, "--license", "Apache-2.0")
    said = card.data.to_dict()
    results = said.pop("model-index")
    expected = {"license": "apache-2.0", "library_name": library, "pipeline_tag": task, "tags": ["bamboo", *tags]}
    assert said == expected
    assert results[0]["name"] == "shared"
    assert "Licence\n\n`apache-2.0`" in card.text
    assert rows(card)["depth x width"] == ("2x64" if kind == "reviews" else "2x32")


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("mae", "transformers.AutoModel."),
        ("avg", "transformers.AutoModelForImageClassification."),
        ("token", "timm.create_model("),
        ("text", "transformers.AutoModelForMaskedLM."),
        ("reviews", "transformers.AutoModelForSequenceClassification."),
    ],
)
def test_what_a_card_says_of_loading_runs_beside_the_folder(trained, tmp_path, monkeypatch, kind, call):
    card = command(trained[kind], tmp_path / "shared")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert call in code
    exec(code, {})


def test_numbers_are_those_of_the_checkpoint_and_of_the_logs_of_its_run(trained, tmp_path):
    card, content = command(trained["mae"], tmp_path / "mae"), read_file(trained["mae"])
    accuracy, shown = content["callbacks"]["NeighbourProbe"]["accuracy"], rows(card)
    assert set(accuracy) == {"raw pixels", "untrained encoder", "trained encoder"}
    for name, value in accuracy.items():
        assert shown[f"accuracy of 20 nearest neighbours, {name}"] == f"{value:.4f}"
    loss = scalars(trained["mae"].parent.parent, "val/loss")
    assert shown["val/loss"] == f"{loss[content['global_step'] - 1]:.4f}"
    assert results(card) == {
        "accuracy of 20 nearest neighbours, frozen features": pytest.approx(accuracy["trained encoder"], abs=1e-6)
    }
    batch = content["batch"]["effective_batch"]
    assert shown["learning rate"].endswith(f", {0.004 * batch / 256:.3g} at this batch")
    assert (shown["steps"], shown["epochs completed"]) == (str(content["global_step"]), "2 of 2")
    assert shown["samples seen"] == f"{content['global_step'] * batch:,}"
    assert shown["warm-up"] == "50.0% of the run"


def test_the_best_value_so_far_is_named_by_the_configuration(trained, tmp_path):
    card = command(trained["text"], tmp_path / "text")
    (state,) = (state for key, state in read_file(trained["text"])["callbacks"].items() if key.startswith("Check"))
    assert rows(card)["best val/loss so far"] == f"{state['best']:.4f}"
    assert rows(card)["steps"] == "4 of 4"
    assert set(results(card)) == {"accuracy"}
    lonely = shutil.copy(trained["text"], tmp_path / "last.ckpt")
    assert (
        rows(command(lonely, tmp_path / "text"))["best value of the monitored metric so far"] == f"{state['best']:.4f}"
    )


def test_a_table_of_metrics_goes_before_events_and_values_of_other_weights_are_no_results(trained, tmp_path):
    checkpoint = copied(trained["avg"], tmp_path / "run")
    steps = read_file(checkpoint)["global_step"]
    lines = [("step", "val/top1", "val/samples", "train/loss"), (3, 0.25, "", ""), (steps - 1, 0.75, 360, 1.0)]
    with (tmp_path / "run/metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*lines, (steps, 0.5, 360, 1.0)])
    card = command(checkpoint, tmp_path / "out")
    assert results(card) == {"top-1 accuracy": 0.75}
    assert rows(card)["val/top1"] == "0.7500"
    assert not {"val/samples", "val/top5", "train/loss"} & rows(card).keys()
    with (tmp_path / "run/metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines[:2])
    card = command(checkpoint, tmp_path / "out")
    assert card.data.eval_results is None
    assert rows(card)["val/top1 after step 4"] == "0.2500"


def test_neighbours_of_a_run_that_had_not_ended_are_no_result(trained, tmp_path):
    checkpoint = copied(trained["mae"], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    config["trainer"]["max_epochs"] = 3
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    card = command(checkpoint, tmp_path / "out")
    assert "accuracy of 20 nearest neighbours, trained encoder, when last measured" in rows(card)
    assert card.data.eval_results is None


def test_without_numbers_a_card_says_that_there_are_none(tmp_path):
    arguments = {"shape": vars(SHAPE), "image_size": 32, "patch_size": 8, "decoder_shape": vars(SHAPE)}
    weights = {f"mae.{key}": tensor for key, tensor in build_mae(**arguments).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": arguments}, tmp_path / "last.ckpt")
    card = command(tmp_path / "last.ckpt", tmp_path / "out")
    assert "Neither the checkpoint nor a log of its run holds a measured number." in card.text
    assert "On which data is not known here." in card.text
    assert "No licence was stated." in card.text
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Masked autoencoding" in card.text
    del arguments["decoder_shape"]
    torch.save({"state_dict": weights, "hyper_parameters": {**arguments, "recipe": "ours"}}, tmp_path / "theirs.ckpt")
    card = command(tmp_path / "theirs.ckpt", tmp_path / "out")
    assert "The checkpoint does not say what it was trained for." in card.text
    assert card.data.tags == ["bamboo", "vision-transformer"]


def test_nothing_in_a_card_tells_where_the_person_keeps_things(trained, tmp_path):
    private = {"class_path": "bamboo.vision.data.ImageFolder", "root": "/home/someone/secret/pictures", "shots": 1}
    source = {"encoder": "/home/someone/secret/runs/first.ckpt"}
    checkpoint = copied(trained["avg"], tmp_path / "run", data=private, model=source)
    for name, path in {**trained, "private": checkpoint}.items():
        card = command(path, tmp_path / f"card-{name}")
        assert "/home" not in card.content
        assert "someone" not in card.content
        assert "secret" not in card.content
        assert "Not certain" not in card.content
        assert "pytest-of" not in card.content  # in the path of every folder of this test
        assert str(path.parents[3]) not in card.content
    assert "started from the weights of `first.ckpt`" in card.text
    assert "Data: images (pictures, shots 1)." in card.text


def test_names_on_the_hub_are_stated_to_the_hub(trained, tmp_path):
    data = {"class_path": "bamboo.vision.data.ImageFolder", "root": "hf:owner/pictures,train=all"}
    checkpoint = copied(trained["avg"], tmp_path / "run", data=data, model={"encoder": "hf:owner/encoder"})
    said = command(checkpoint, tmp_path / "out").data
    assert (said.datasets, said.base_model) == (["owner/pictures"], "owner/encoder")
    assert {result.dataset_type for result in said.eval_results} == {"owner/pictures"}
    scratch = copied(trained["avg"], tmp_path / "scratch", model={"encoder": "scratch"})
    assert "started from" not in command(scratch, tmp_path / "out").text


@pytest.mark.parametrize(
    ("source", "name", "hub"),
    [
        ("hf:owner/name", "owner/name", "owner/name"),
        ("hf:/home/someone/model", "model", None),
        ("timm:vit_base@/home/someone/weights.pth", "timm:vit_base@weights.pth", None),
        ("timm:vit_base", "timm:vit_base", None),
        ("/home/someone/a,b/images", "images", None),
        ("..", "a folder", None),
    ],
)
def test_of_a_path_the_last_part_is_kept(source, name, hub):
    assert without_folders(source)[:2] == (name, hub)


def test_a_folder_here_is_no_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_folders("hf:runs/mine")[:2] == ("mine", None)


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_the_training_of_a_foreign_file_is_unknown(tmp_path, format):
    card = command(reference(tmp_path / "mae_visualize.pth"), tmp_path / "out", "--format", format)
    assert "Converted from `mae_visualize.pth`. How that was trained is not known here" in card.text
    assert "Masked autoencoding" not in card.text
    assert rows(card)["depth x width"] == "1x64"
    assert "Not certain: the file has no head count: 1 heads of 64 taken" in card.text
    assert "nothing says how pixels are standardised" in card.text
    assert card.data.eval_results is None
    if format == "hf":
        again = command(tmp_path / "out", tmp_path / "again", "--format", "hf")
        assert "Converted from `out`." in again.text


def test_parameters_and_flops_are_those_of_the_model(trained, tmp_path):
    shown, patches = rows(command(trained["mae"], tmp_path / "hf", "--format", "hf")), Patches.of(16, 4, 1)
    weights = load_file(tmp_path / "hf/model.safetensors")
    assert shown["parameters in the file"] == f"{sum(tensor.numel() for tensor in weights.values()):,}"
    assert shown["parameters of the blocks"] == f"{SHAPE.parameters:,}"
    assert shown["encoder, one image forward"].split()[0] == f"{encoder_flops(SHAPE, patches) / 1e9:.4g}"
    both = encoder_flops(SHAPE, patches, 4) + decoder_flops(Shape(1, 32, 2), SHAPE, patches, 4, 12)
    assert shown["both, one masked image forward"].split()[0] == f"{both / 1e9:.4g}"
    shown = rows(command(trained["avg"], tmp_path / "timm"))
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert shown["parameters in the file"] == f"{sum(tensor.numel() for tensor in model.state_dict().values()):,}"
    assert shown["parameters of the blocks"] == f"{sum(p.numel() for p in model.blocks.parameters()):,}"
    shown = rows(command(trained["text"], tmp_path / "text"))
    assert shown["parameters of the blocks"] == f"{SHAPE.parameters:,}"
    assert shown["blocks, 64 tokens forward"].split()[0] == f"{SHAPE.flops(64) / 1e9:.4g}"
    assert shown["tokenizer"] == "WordPiece, 500 tokens"


def test_a_card_depends_on_nothing_but_model_and_name_and_an_export_replaces_its_own(trained, tmp_path, capsys):
    first = command(trained["mae"], tmp_path / "a/same", "--license", "mit").content
    second = command(trained["mae"], tmp_path / "b/same", "--license", "mit").content
    assert first == second
    assert command(trained["avg"], tmp_path / "a/same").content != first
    assert "share it by\n  hf upload NAMESPACE/NAME" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["# By hand\n", "{}and a word by hand\n", "by hand\n{}", ""])
def test_a_card_that_a_person_wrote_or_changed_is_left_as_it_is(trained, tmp_path, capsys, change):
    out = tmp_path / "out"
    written = change.format(command(trained["mae"], out).content)
    shutil.rmtree(out)
    out.mkdir()
    (out / "README.md").write_text(written)
    for source in ("mae", "text"):
        assert main(["export", str(trained[source]), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "was written or changed by hand" in error
        assert error.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert (out / "README.md").read_text() == written
    with pytest.raises(ValueError, match="by hand"):
        write_card(trained["mae"], out)


@pytest.mark.parametrize("license", ["mit\nbase_model: x", "mit licence", "", "- mit", "mit\n"])
def test_what_is_no_licence_is_said_in_one_line(trained, tmp_path, capsys, license):
    assert main(["export", str(trained["mae"]), "--out", str(tmp_path / "out"), f"--license={license}"]) == 2
    error = capsys.readouterr().err
    assert "no id of a licence" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_reference_format_has_no_card(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(trained["mae"]), "--out", str(out), "--format", "reference"]) == 0
    assert [path.name for path in out.iterdir()] == ["checkpoint.pth"]
    assert main(["export", str(trained["mae"]), "--out", str(out), "--format", "reference", "--license", "mit"]) == 2
    assert "leave --license out" in capsys.readouterr().err
