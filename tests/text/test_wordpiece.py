import json
import subprocess
import sys
from hashlib import sha256
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer

from bamboo.errors import InputError
from bamboo.text.pieces import LONGEST, PIECE, pieces
from bamboo.text.wordpiece import SPECIAL, _sample, load_tokenizer, save_tokenizer, special_ids, train_wordpiece

HARD = {
    "accents": "Café naïve Ångström ŽIVOT ĳ ﬁ ß İstanbul ΣΊΣΥΦΟΣ",
    "combining marks": "e\u0301 a\u0308\u0301 \u0301alone o\u0302\u0323 नमस्ते ก็",
    "cjk": "漢字かな交じり文と한국어 abc漢def 𠀀㐀",
    "control characters": "a\x07b\x1bc\u200bd\u00ade\ufefff\x7f\x85g\x0bh\x0ci\x1cj",
    "blanks": "a\u00a0b\u2003c\u3000d\te\u2028f\u2029g   ",
    "emoji": "👩‍👩‍👧‍👦 ok 👍🏽 🇩🇪 ☃️",
    "very long words": f"{'a' * 100} {'b' * 101} {'ab' * 5000} end",
    "line ends": "one\r\ntwo\rthree\n\nfour\n",
    "nuls": "a\0b \0 c\ufffd",
    "arabic": "السَّلامُ عَلَيْكُم ١٢٣ ـــ",
    "special tokens": "The [MASK] is [SEP][CLS] [mask] [PAD]x[UNK] [MASK",
    "punctuation": "don't--stop...$5.00 «ok» ¿qué? ^`~ a_b @#%",
    "nothing": "",
    "only blanks": " \r\n\t",
}
TEXTS = [*topics.values(), *HARD.values()] * 2


@pytest.fixture(scope="module", params=["uncased", "cased"])
def trained(request):
    return train_wordpiece(TEXTS, 2000, lowercase=request.param == "uncased")


def bert(vocabulary, lowercase, folder):
    folder.mkdir(exist_ok=True)
    ordered = sorted(vocabulary, key=vocabulary.get)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in ordered), encoding="utf-8")
    return BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lowercase)


def same(ours, theirs, text):
    pairs = ours.encode(text), theirs(text)
    assert pairs[0].ids == pairs[1]["input_ids"]
    assert pairs[0].type_ids == pairs[1]["token_type_ids"]
    assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
    two = ours.encode(text, "And more."), theirs(text, "And more.")
    assert (two[0].ids, two[0].type_ids) == (two[1]["input_ids"], two[1]["token_type_ids"])


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_a_trained_vocabulary_encodes_as_berts_tokenizer_does(trained, tmp_path, text):
    same(trained, bert(trained.get_vocab(), trained.normalizer.lowercase, tmp_path), text)


@pytest.mark.parametrize("cased", [False, True], ids=["uncased", "cased"])
def test_a_loaded_vocabulary_encodes_as_berts_tokenizer_does(trained, tmp_path, cased):
    unused = [f"[unused{number}]" for number in range(99)]  # as in the published files, [PAD] before and [UNK] behind
    words = sorted(set(trained.get_vocab()) - set(SPECIAL))
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([SPECIAL[0], *unused, *SPECIAL[1:], *words]), encoding="utf-8")
    ours = load_tokenizer(path, cased)
    theirs = BertTokenizer(str(path), do_lower_case=not cased)
    assert special_ids(ours) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    for text in [*HARD.values(), *list(topics.values())[:20]]:
        same(ours, theirs, text)


def test_a_saved_tokenizer_is_berts_to_transformers_and_itself_to_us(trained, tmp_path):
    save_tokenizer(trained, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, BertTokenizer)
    assert theirs.do_lower_case == trained.normalizer.lowercase
    assert [theirs.pad_token, theirs.unk_token, theirs.cls_token, theirs.sep_token, theirs.mask_token] == list(SPECIAL)
    assert theirs.mask_token_id == special_ids(trained)["mask"] == 4
    assert len(theirs) == trained.get_vocab_size()
    for text in HARD.values():
        same(trained, theirs, text)
        assert theirs.decode(theirs(text)["input_ids"]) == trained.decode(trained.encode(text).ids, False)
    for path in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "vocab.txt"):
        assert load_tokenizer(path).to_str() == trained.to_str()
    theirs.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").get_vocab() == trained.get_vocab()


def test_strip_accents_and_chinese_characters_follow_the_configuration_beside_a_vocabulary(trained, tmp_path):
    config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    theirs = bert(trained.get_vocab(), False, tmp_path)
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), **config)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    for text in HARD.values():
        same(ours, theirs, text)
    save_tokenizer(ours, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(HARD["cjk"])["input_ids"] == ours.encode(HARD["cjk"]).ids


def test_truncation_and_padding_in_a_file_do_not_count(trained, tmp_path):
    other = Tokenizer.from_str(trained.to_str())
    other.enable_truncation(8)
    other.enable_padding(length=8)
    other.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).to_str() == trained.to_str()


def test_training_gives_the_same_vocabulary_in_every_process():
    script = (
        "import hashlib, random\n"
        "from bamboo.text.wordpiece import train_wordpiece\n"
        "from pydoc_data.topics import topics\n"
        "rng = random.Random(0)\n"
        "cjk = [''.join(chr(0x4e00 + rng.randrange(3000)) for _ in range(50)) for _ in range(300)]\n"
        "tokenizer = train_wordpiece([*list(topics.values())[:30], *cjk], 5000)\n"
        "print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())\n"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == len(sha256().hexdigest())


def test_numbers_start_with_the_special_tokens_and_have_no_gap(trained):
    vocabulary = trained.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get)[:5] == list(SPECIAL)
    assert sorted(vocabulary.values()) == list(range(2000))
    assert not {"##.", "##漢"} & set(vocabulary)


def test_a_small_text_gives_a_small_vocabulary_and_a_small_vocabulary_a_small_alphabet():
    assert train_wordpiece(["low lower lowest newer newest wider"], 2000).get_vocab_size() < 60
    assert train_wordpiece(TEXTS, 64).get_vocab_size() == 64


def test_an_alphabet_of_thousands_is_kept_where_the_text_is_made_of_it():
    text = " ".join(chr(0x4E00 + i) for i in range(3000))
    assert train_wordpiece([text], 20_000).get_vocab_size() == 5 + 2999  # 99.95 % of 3000, rounded up


def test_of_much_text_an_even_share_is_drawn():
    texts = [f"{i:09}" for i in range(2000)]
    assert _sample(texts, 1 << 20) == [text.encode() for text in texts]
    drawn = [int(text) for text in _sample(iter(texts), 2000)]
    assert 80 < len(drawn) <= 2000 // 9
    assert drawn == sorted(drawn)
    assert sum(number < 1000 for number in drawn) == pytest.approx(len(drawn) / 2, rel=0.3)


def test_pieces_have_the_tokens_of_the_text(trained):
    text = " ".join([*HARD.values(), *topics.values()])
    assert len(list(pieces(text))) > 50
    assert "".join(pieces(text)) == text
    tokens = [n for piece in pieces(text) for n in trained.encode(piece, add_special_tokens=False).ids]
    assert tokens == trained.encode(text, add_special_tokens=False).ids


def test_pieces_are_short_even_without_blanks():
    assert [len(piece) for piece in pieces("x" * (2 * LONGEST + 5))] == [LONGEST, LONGEST, 5]
    assert list(pieces("")) == [""]
    assert max(map(len, pieces("word " * 100_000))) < PIECE + 5


def test_what_is_no_bert_tokenizer_is_refused_in_one_line(tmp_path):
    def refused(path, cased=False):
        with pytest.raises(InputError) as found:
            load_tokenizer(path, cased)
        assert "\n" not in str(found.value)
        return str(found.value)

    def vocabulary(*tokens):
        (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return tmp_path / "vocab.txt"

    assert "is missing" in refused(tmp_path / "none.txt")
    assert "has neither vocab.txt nor tokenizer.json" in refused(tmp_path)
    assert "has no [MASK]:" in refused(vocabulary(*SPECIAL[:-1], "a"))
    assert "has no [PAD], [UNK], [CLS], [SEP], [MASK]:" in refused(vocabulary("a"))
    assert "number 6 has no token" in refused(vocabulary(*SPECIAL, "x", "a", "a"))
    (tmp_path / "vocab.txt").write_bytes("naïve\n".encode("latin1"))
    assert "is no vocabulary" in refused(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is no tokenizer" in refused(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert "is made of BPE, NoneType, NoneType: expected BERT's WordPiece" in refused(tmp_path)
    train_wordpiece(["some text"], 64).save(str(tmp_path / "tokenizer.json"))
    assert "lower-cases" in refused(tmp_path, cased=True)
    (tmp_path / "tokenizer.json").unlink()
    vocabulary(*SPECIAL)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json is damaged" in refused(tmp_path)


def test_a_size_or_text_that_cannot_make_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocab_size must be at least 64, got 10"):
        train_wordpiece(["text"], 10)
    with pytest.raises(InputError, match="no text to train a vocabulary on"):
        train_wordpiece(["", " \n"], 100)


def test_the_workers_imports_are_light():
    heavy = {"torch", "transformers", "datasets", "pyarrow"}
    script = f"import sys, bamboo.text.packing; print(sorted({heavy} & {{*sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
