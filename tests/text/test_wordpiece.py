import subprocess
import sys
from pydoc_data.topics import topics

import pytest

from bamboo.errors import InputError
from bamboo.text.tokenizer import BERT_SPECIAL
from bamboo.text.wordpiece import _sample, train_wordpiece

TEXTS = [*topics.values(), "漢字かな交じり文と한국어 abc漢def", "Café naïve Ångström"] * 2


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
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, check=True) for _ in range(2)]
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout.strip()) == 64


def test_numbers_start_with_the_special_tokens_and_have_no_gap():
    vocabulary = train_wordpiece(TEXTS, 2000).get_vocab()
    assert sorted(vocabulary, key=vocabulary.get)[:5] == list(BERT_SPECIAL)
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


def test_a_size_or_text_that_cannot_make_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="vocab_size must be at least 64, got 10"):
        train_wordpiece(["text"], 10)
    with pytest.raises(InputError, match="no text to train a vocabulary on"):
        train_wordpiece(["", " \n"], 100)
