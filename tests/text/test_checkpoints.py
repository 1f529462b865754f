from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text.checkpoints import export_text, load_text
from bamboo.text.classification import TextClassification
from bamboo.text.filling import fill, filled_in
from bamboo.text.pretraining import MLMPretraining
from tests.runs import load
from tests.text.runs import saved

SENTENCE = "A dog is an [MASK] that people keep as a [MASK]."
TEXTS = ["A dog, naïve and 犬, barks.", "Short."]
TINY = {"shape": {"depth": 2, "width": 16, "heads": 2}, "vocab_size": 500, "max_positions": 64}


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load(checkpoint)["tokenizer"]


def encode(folder):
    return AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")


@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm", "modernbert"])
def test_an_exported_folder_gives_equal_outputs(architecture, tokenizer, tmp_path):
    path = saved(MLMPretraining(architecture=architecture, **TINY), tmp_path / "last.ckpt", tokenizer)
    name, _ = export_text(path, tmp_path / "folder")
    assert name == "AutoModelForMaskedLM"
    loaded, exported = load_text(path), AutoModelForMaskedLM.from_pretrained(tmp_path / "folder").eval()
    encoded = encode(tmp_path / "folder")
    assert encoded["input_ids"].tolist() == loaded.tokenizer(TEXTS, padding=True)["input_ids"]
    read = encoded["attention_mask"].bool()
    left, right = (model(encoded["input_ids"], attention_mask=read).logits for model in (exported, loaded.model))
    torch.testing.assert_close(left[read], right[read])
    again = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert (again.mask_token, again.model_max_length) == ("[MASK]", 64)
    assert exported.config.bos_token_id == again.cls_token_id
    assert load_text(tmp_path / "folder").notes == ()
    AutoModelForMaskedLM.from_pretrained(tmp_path / "folder").half().save_pretrained(tmp_path / "folder")
    assert {weight.dtype for weight in load_text(tmp_path / "folder").model.parameters()} == {torch.float32}


def test_the_encoder_alone_of_a_classification_leaves_into_the_current_folder(tokenizer, tmp_path, monkeypatch):
    """Its head is none of transformers', and a masked language model's would be drawn at random."""
    path = saved(TextClassification(architecture="bert", **TINY), tmp_path / "last.ckpt", tokenizer)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    name, _ = export_text(path, Path())
    assert name == "AutoModel"
    exported = AutoModel.from_pretrained(tmp_path / "folder", add_pooling_layer=False).eval()
    assert exported.config.architectures == [type(exported).__name__] == ["BertModel"]
    encoded, loaded = encode(tmp_path / "folder"), load_text(path)
    assert "drawn at random" in loaded.notes[0]
    left, right = (model(encoded["input_ids"]).last_hidden_state for model in (exported, loaded.model.base_model))
    torch.testing.assert_close(left, right)


def test_export_and_fill_are_commands(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), "--format", "hf", "--out", str(tmp_path / "folder")]) == 0
    assert f'transformers.AutoModelForMaskedLM.from_pretrained("{tmp_path / "folder"}")' in capsys.readouterr().out
    assert main(["fill", SENTENCE, "--model", str(tmp_path / "folder"), "--top", "3"]) == 0
    first, *lines = capsys.readouterr().out.strip().splitlines()
    assert "[MASK]" not in first
    assert [line.split(":")[0] for line in lines] == ["[MASK] 1", "[MASK] 2"]
    assert all(line.count("%") == 3 for line in lines)


def test_filling_takes_the_likeliest_token_of_the_model(checkpoint):
    model, tokenizer, _ = load_text(checkpoint)
    encoded = tokenizer(SENTENCE, return_tensors="pt")
    logits = model(encoded["input_ids"]).logits[0, encoded["input_ids"][0] == tokenizer.mask_token_id]
    expected = tokenizer.convert_ids_to_tokens(logits[:, : len(tokenizer)].argmax(-1).tolist())
    filled = fill(model, tokenizer, SENTENCE)
    assert [guesses.words[0] for guesses in filled] == expected
    assert filled_in(SENTENCE, filled) == SENTENCE.replace("[MASK]", "{}").format(*expected)


def test_what_cannot_be_filled_or_read_is_said_in_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    wrong = {
        "no [MASK]": ["A dog.", "--model", str(checkpoint)],
        "top must be at least 1, got 0": ["[MASK]", "--model", str(checkpoint), "--top", "0"],
        "more than the model's 64": ["dog " * 80 + "[MASK]", "--model", str(checkpoint)],
        "is missing": ["[MASK]", "--model", "nowhere.ckpt"],
        "cut short or no checkpoint": ["[MASK]", "--model", str(tmp_path / "weights.pt")],
        "cannot be loaded": ["[MASK]", "--model", str(tmp_path)],
    }
    for message, arguments in wrong.items():
        assert main(["fill", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_text_checkpoint_is_not_exported_as_an_image_model(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), "--format", "timm", "--out", str(tmp_path / "out")]) == 2
    assert "exported as hf, not as timm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_checkpoint_is_no_language_model(tmp_path):
    torch.save({"state_dict": {"mae.encoder.x": torch.zeros(1)}}, tmp_path / "image.ckpt")
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_text(tmp_path / "image.ckpt")
