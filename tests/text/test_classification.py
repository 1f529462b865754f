import torch
from lightning import Trainer

from bamboo.cli import main
from bamboo.recipes import Recipe
from bamboo.text.checkpoints import load_text
from bamboo.text.classification import TextClassification
from bamboo.text.glosses import GlossSubjects, read_glosses
from tests.runs import CONFIGS, load, same, scalars
from tests.text.runs import TINY, last

CONFIG = ["--config", str(CONFIGS / "finetune/scratch_glosses.yaml"), *TINY]


def test_there_are_as_many_definitions_as_imagenet_has_classes_and_each_has_a_subject():
    glosses = read_glosses()
    assert len(glosses) == 21_844
    assert {int(gloss.synset[1:3]) for gloss in glosses} == set(range(GlossSubjects.num_classes))
    assert next(gloss.text for gloss in glosses if gloss.synset == "n02084071").startswith(
        "a member of the genus Canis"
    )


def test_a_batch_is_padded_and_says_what_is_read():
    data = GlossSubjects(vocab_size=500, length=16, batch_size=8)
    batch = next(iter(data.val_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(batch["label"]), 16)
    assert torch.equal(batch["attention_mask"], batch["input_ids"] != 0)
    assert batch["special_tokens_mask"][:, 0].all()
    train, val = data.parts
    assert len(train) + len(val) == 21_844
    assert 0.08 < len(val) / 21_844 < 0.12


def test_classification_from_scratch_learns_and_logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for pool in ("token", "avg"):
        arguments = [*CONFIG, "--trainer.max_steps", "60", "--trainer.val_check_interval", "60"]
        assert main(["fit", *arguments, "--model.init_args.pool", pool]) == 0
    for version in (0, 1):
        folder = last(tmp_path, "scratch_glosses", version).parent.parent
        losses = list(scalars(folder, "train/loss").values())
        assert losses[-1] < losses[0]
        assert next(iter(scalars(folder, "val/accuracy").values())) > 0.1
        assert scalars(folder, "similarity/layer_02")


def test_the_encoder_of_a_classifier_is_loaded_and_profiled(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *CONFIG, "--trainer.max_steps", "1"]) == 0
    checkpoint = last(tmp_path, "scratch_glosses")
    model, tokenizer, notes = load_text(checkpoint)
    weights = load(checkpoint)["state_dict"]
    assert all(torch.equal(value, weights[f"model.{key}"]) for key, value in model.base_model.state_dict().items())
    assert len(tokenizer) == 2048
    assert "drawn at random" in notes[0]
    (tmp_path / "text.txt").write_text("a large cat with stripes. " * 40)
    assert main(["profile", str(checkpoint), "--data", "text.txt", "--out", "out", "--max-length", "32"]) == 0
    assert "drawn at random" in capsys.readouterr().out


def test_what_does_not_fit_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = {
        "set vocab_size alike": ["--model.init_args.vocab_size=64", "--data.init_args.vocab_size=500"],
        "above the model's 8 positions": ["--model.init_args.positions=8"],
        "needs GlossSubjects": ["--data=bamboo.text.data.ShippedEnglish"],
        "length must be at least 4": ["--data.init_args.length=2"],
    }
    for message, arguments in wrong.items():
        assert main(["fit", *CONFIG, *arguments]) == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error, error
        assert "\n" not in error, error


def test_a_checkpoint_is_loaded_with_the_recipe_of_the_run(tmp_path):
    recipe = Recipe(base_lr=0.01, schedule="linear", warmup_share=0.3, betas=(0.8, 0.9))
    shape = {"depth": 2, "width": 16, "heads": 2, "mlp_ratio": 2.0}
    module = TextClassification(recipe, seed=4, pool="avg", shape=shape, vocab_size=500, positions=32, dropout=0.1)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, limit_val_batches=0, **options)
    trainer.fit(module, datamodule=GlossSubjects(vocab_size=500, length=16, batch_size=8))
    trainer.save_checkpoint(tmp_path / "glosses.ckpt")
    again = TextClassification.load_from_checkpoint(tmp_path / "glosses.ckpt")
    assert (again.recipe, again.seed, again.pool, again.tokenizer_json) == (recipe, 4, "avg", module.tokenizer_json)
    assert {layer.p for layer in again.modules() if isinstance(layer, torch.nn.Dropout)} == {0.1}
    assert same(again.state_dict(), module.state_dict())
