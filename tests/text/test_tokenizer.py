import json
from pydoc_data.topics import topics

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertTokenizer

from bamboo.errors import InputError
from bamboo.text.packing import write_corpus
from bamboo.text.tokenizer import (
    BERT_SPECIAL,
    continues_word,
    load_tokenizer,
    save_tokenizer,
    special_ids,
)
from bamboo.text.wordpiece import train_wordpiece

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
ROLES = ("pad", "unk", "cls", "sep", "mask")


@pytest.fixture(scope="module", params=["uncased", "cased"])
def trained(request):
    return train_wordpiece(TEXTS, 2000, lowercase=request.param == "uncased")


def byte_pairs(first, last, special, folder):
    """A byte-level BPE that puts `first` and `last` around a text, as RoBERTa and ModernBERT do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{first} $A {last}", special_tokens=ids)
    tokenizer.save(str(folder / "tokenizer.json"))


def roberta(folder):
    byte_pairs("<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], folder)


def modernbert(folder):
    byte_pairs("[CLS]", "[SEP]", ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], folder)


def sentencepiece(folder):
    """A unigram model that adds nothing to a text; its configuration alone names the roles."""
    special = ["<unk>", "<pad>", "<begin>", "<end>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(list(topics.values())[:20], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<begin>", "eos_token": {"content": "<end>"}, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("make", "special"),
    [
        (roberta, ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]),
        (modernbert, list(BERT_SPECIAL)),
        (sentencepiece, ["<pad>", "<unk>", "<begin>", "<end>", "<mask>"]),
    ],
)
def test_tokenizers_of_other_kinds_are_read_by_role_and_make_a_corpus(make, special, tmp_path):
    make(tmp_path)
    tokenizer, original = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = special_ids(tokenizer)
    assert [tokenizer.id_to_token(ids[role]) for role in ROLES] == special
    assert tokenizer.encode("A word").tokens[:: len(tokenizer.encode("A word").ids) - 1] == special[2:4]
    text = topics["assignment"]
    corpus = write_corpus([text, "one <mask> two </s> [SEP]"] * 2, tokenizer, tmp_path / "corpus", val_fraction=0.5)
    assert special_ids(corpus.tokenizer) == ids
    tokens = sorted((corpus.train.tolist(), corpus.val.tolist()), key=len)
    assert tokens[0].count(ids["sep"]) == 2
    assert ids["mask"] not in tokens[0]
    assert tokenizer.decode(tokens[1][: tokens[1].index(ids["sep"])]) == tokenizer.decode(original.encode(text).ids)
    saved = AutoTokenizer.from_pretrained(tmp_path / "corpus" / "tokenizer")
    assert [getattr(saved, f"{role}_token") for role in ROLES] == special
    assert saved("A word, and more")["input_ids"] == tokenizer.encode("A word, and more").ids
    words = ["A", " word", "s"] if make is not sentencepiece else []
    starts = [not continues_word(tokenizer)[tokenizer.encode(w, add_special_tokens=False).ids[0]] for w in words]
    assert starts == [False, True, False][: len(words)]
    assert not any(continues_word(tokenizer)[number] for number in ids.values())


def test_a_folder_without_a_tokenizer_json_is_read_by_auto_tokenizer(tmp_path):
    roberta(tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (tmp_path / "old").mkdir()
    reference.model.save(str(tmp_path / "old"))  # vocab.json and merges.txt
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    tokenizer = load_tokenizer(tmp_path / "old")
    assert special_ids(tokenizer) == special_ids(load_tokenizer(tmp_path))
    assert tokenizer.encode("Some text.").ids == reference.encode("Some text.").ids


def same(tokenizer, reference, text):
    pairs = tokenizer.encode(text), reference(text)
    assert pairs[0].ids == pairs[1]["input_ids"]
    assert (
        tokenizer.encode(text, add_special_tokens=False).ids == reference(text, add_special_tokens=False)["input_ids"]
    )
    two = tokenizer.encode(text, "And more."), reference(text, "And more.")
    assert (two[0].ids, two[0].type_ids) == (two[1]["input_ids"], two[1]["token_type_ids"])


@pytest.mark.parametrize("cased", [False, True], ids=["uncased", "cased"])
def test_berts_vocabulary_encodes_as_berts_tokenizer_does(trained, tmp_path, cased):
    unused = [f"[unused{number}]" for number in range(99)]  # as in the published files, [PAD] before and [UNK] behind
    words = sorted(set(trained.get_vocab()) - set(BERT_SPECIAL))
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([BERT_SPECIAL[0], *unused, *BERT_SPECIAL[1:], *words]), encoding="utf-8")
    tokenizer = load_tokenizer(path, cased)
    assert special_ids(tokenizer) == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    for text in [*HARD.values(), *list(topics.values())[:20]]:
        same(tokenizer, BertTokenizer(str(path), do_lower_case=not cased), text)
    config = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for text in HARD.values():
        same(load_tokenizer(tmp_path), BertTokenizer(str(path), **config), text)


def test_a_saved_tokenizer_is_the_same_to_transformers_and_to_us(trained, tmp_path):
    other = Tokenizer.from_str(trained.to_str())
    other.enable_truncation(8)
    other.enable_padding(length=8)
    other.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).to_str() == trained.to_str()
    save_tokenizer(trained, tmp_path, longest=64)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    assert [getattr(reference, f"{role}_token") for role in ROLES] == list(BERT_SPECIAL)
    assert (len(reference), reference.model_max_length) == (trained.get_vocab_size(), 64)
    for text in HARD.values():
        same(trained, reference, text)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).to_str() == trained.to_str()


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path):
    def refused(path, cased=False):
        with pytest.raises(InputError) as error:
            load_tokenizer(path, cased)
        assert "\n" not in str(error.value)
        return str(error.value)

    def vocabulary(*tokens):
        (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return tmp_path / "vocab.txt"

    assert "none.txt is missing" in refused(tmp_path / "none.txt")
    assert "is no tokenizer" in refused(tmp_path)
    assert "vocab.txt has no [MASK]:" in refused(vocabulary(*BERT_SPECIAL[:-1], "a"))
    assert "vocab.txt: number 6 has no token" in refused(vocabulary(*BERT_SPECIAL, "x", "a", "a"))
    (tmp_path / "vocab.txt").write_bytes("naïve\n".encode("latin1"))
    assert "vocab.txt is no tokenizer" in refused(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is no tokenizer" in refused(tmp_path)
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert "no special token for cls, sep, mask" in refused(tmp_path)
    train_wordpiece(["some text"], 64).save(str(tmp_path / "tokenizer.json"))
    assert "lower-cases" in refused(tmp_path, cased=True)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json is damaged" in refused(tmp_path)
