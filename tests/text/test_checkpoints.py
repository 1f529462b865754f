import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text.checkpoints import load_text
from bamboo.text.filling import fill, filled_in
from tests.text.runs import fit, last

SENTENCE = "A dog is an [MASK] that people keep as a [MASK]."


@pytest.mark.parametrize("architecture", ["bert", "roberta-prelayernorm", "modernbert"])
def test_an_exported_folder_gives_equal_outputs(architecture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_steps", "1", "--model.init_args.architecture", architecture]
    assert fit(*options, "--data.init_args.vocab_size", "500", "--model.init_args.vocab_size", "500") == 0
    assert main(["export", str(last(tmp_path)), "--format", "hf", "--out", "folder"]) == 0
    assert "AutoModelForMaskedLM" in capsys.readouterr().out
    ours = load_text(last(tmp_path))
    theirs, tokenizer = AutoModelForMaskedLM.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder")
    texts = ["A dog, naïve and 犬, barks.", "Short."]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist() == ours.tokenizer(texts, padding=True)["input_ids"]
    left = theirs.eval()(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    right = ours.model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    read = encoded["attention_mask"].bool()
    torch.testing.assert_close(left[read], right[read])
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.model_max_length == 64
    assert len(load_text("folder").notes) == 0


def test_fill_prints_words_with_probabilities(checkpoint, capsys):
    assert main(["fill", SENTENCE, "--model", str(checkpoint), "--top", "3"]) == 0
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
    assert [one.words[0] for one in filled] == expected
    assert filled_in(SENTENCE, filled) == SENTENCE.replace("[MASK]", "{}").format(*expected)


def test_what_cannot_be_filled_or_read_is_said_in_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    wrong = {
        "no [MASK]": ["A dog.", "--model", str(checkpoint)],
        "more than the model's 64": ["dog " * 80 + "[MASK]", "--model", str(checkpoint)],
        "is missing": ["[MASK]", "--model", "nowhere.ckpt"],
        "cut short or no checkpoint": ["[MASK]", "--model", str(tmp_path / "weights.pt")],
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
