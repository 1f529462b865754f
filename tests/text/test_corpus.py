import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers import Tokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text import packing
from bamboo.text.corpus import Corpus
from bamboo.text.packing import held_out, token_type, write_corpus
from bamboo.text.tokenizer import BERT_SPECIAL, save_tokenizer, special_ids
from bamboo.text.wordpiece import train_wordpiece

DOCUMENTS = [
    *list(topics.values())[:60],
    "[MASK] [SEP] and [PAD] are text",
    "漢字 é e\u0301 👩‍👩‍👧 \0 السَّلامُ",
    "\u200b\x07",  # has no token
    "x" * 5000,
    "word " * 20_000,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([*topics.values()], 1500)


@pytest.fixture
def text(tmp_path):
    """A folder with the language manual in one file, which is long enough to be cut, and a short one."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "manual.txt").write_text("\n\n".join(topics.values()), encoding="utf-8")
    (folder / "short.md").write_text("A short one: naïve café.\r\n", encoding="utf-8")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def documents_of(tokens, separator=3):
    ends = np.flatnonzero(tokens == separator) + 1
    return [document.tolist() for document in np.split(np.asarray(tokens), ends[:-1])]


def test_the_corpus_gives_back_every_document_once(tokenizer, tmp_path):
    corpus = write_corpus(DOCUMENTS, tokenizer, tmp_path / "corpus", val_fraction=0.2, seed=3)
    literal = Tokenizer.from_str(tokenizer.to_str())
    literal.encode_special_tokens = True
    alone = [literal.encode(document, add_special_tokens=False).ids for document in DOCUMENTS]
    ids = special_ids(tokenizer)
    expected = [[*tokens, ids["sep"]] for tokens in alone if tokens]
    train, val = documents_of(corpus.train), documents_of(corpus.val)
    assert len(expected) == len(DOCUMENTS) - 1 == len(train) + len(val)
    assert [corpus.metadata[split]["documents"] for split in ("train", "val")] == [len(train), len(val)]
    for part in (train, val):
        assert part == [document for document in expected if document in part]
    assert 4 < len(val) < 24
    assert corpus.tokenizer.to_str() == tokenizer.to_str()
    for tokens in (corpus.train, corpus.val):
        assert not np.isin(tokens, [ids["pad"], ids["cls"], ids["mask"]]).any()


def test_a_document_is_held_out_wherever_it_stands_and_its_copies_with_it(tokenizer, tmp_path):
    def held(documents, name, seed=0):
        return documents_of(write_corpus(documents, tokenizer, tmp_path / name, val_fraction=0.3, seed=seed).val)

    first = held(DOCUMENTS[:40], "first")
    assert first[::-1] == held(DOCUMENTS[39::-1], "reversed")
    assert [document for document in held(DOCUMENTS, "more") if document in first] == first
    assert held(DOCUMENTS[:40] * 2, "twice") == first * 2
    assert held(DOCUMENTS[:40], "seed", 1) != first


def test_a_share_of_the_hashes_is_held_out_at_least_one_and_never_all():
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    assert held_out(hashes, 0.05).mean() == pytest.approx(0.05, abs=0.003)
    low, middle, high = np.array([1, 2**63, 2**64 - 1], np.uint64)
    assert held_out(np.array([high, middle, middle, high]), 0.01).tolist() == [False, True, True, False]
    assert held_out(np.array([low, low + 1]), 0.5).tolist() == [True, False]
    assert held_out(np.array([high, high]), 0.05).tolist() == [True, False]


RUN = """
import os, signal, sys
from pathlib import Path
from bamboo.text import packing
from bamboo.text.commands import tokenize

packing.PART, left, encode = 1 << 14, [int(sys.argv[5])], packing._encode_part
def encode_or_die(*args):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    encode(*args)

packing._encode_part = encode_or_die
tokenize([Path(sys.argv[1])], out=Path(sys.argv[2]), tokenizer=sys.argv[3], workers=int(sys.argv[4]))
print("heavy", sorted({"torch", "transformers", "datasets"} & {*sys.modules}))
print("threads", len(os.listdir("/proc/self/task")))
print("peak", Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
on_linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")


def run(text, out, tokenizer, workers=1, parts=-1):
    save_tokenizer(tokenizer, out.parent / "tokenizer")
    args = [sys.executable, "-c", RUN, str(text), str(out), str(out.parent / "tokenizer"), str(workers), str(parts)]
    return subprocess.run(args, capture_output=True, text=True)


@on_linux
@pytest.mark.slow
def test_the_bytes_are_the_same_for_any_number_of_threads_and_after_kill_9(tokenizer, text, tmp_path):
    whole, threads, killed = tmp_path / "whole", tmp_path / "threads", tmp_path / "killed"
    one, three = run(text, whole, tokenizer, 1), run(text, threads, tokenizer, 3)
    assert "heavy []" in one.stdout
    counts = [int(done.stdout.split("threads")[-1].split()[0]) for done in (one, three)]
    assert counts[1] == counts[0] + 2
    assert contents(whole) == contents(threads)
    assert set(contents(whole)) == {
        *("train.bin", "val.bin", "corpus.json"),
        *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    }
    assert run(text, killed, tokenizer, parts=3).returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="is unfinished: run the same `bamboo tokenize` again"):
        Corpus.open(killed)
    assert "went on from 3 of " in run(text, killed, tokenizer).stdout
    assert contents(killed) == contents(whole)


@on_linux
def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path):
    manual, peaks = "\n".join(topics.values()), []
    for megabytes in (1, 8):
        path = tmp_path / f"{megabytes}.txt"
        path.write_text(manual * (megabytes * 1_000_000 // len(manual)))
        peaks.append(int(run(path, tmp_path / f"{megabytes}", tokenizer).stdout.split("peak")[1]) / 1024)
    assert peaks[1] < 200
    assert peaks[1] - peaks[0] < 6


def interrupted(documents, after):
    yield from documents[:after]
    raise KeyboardInterrupt


def test_parts_of_other_text_or_of_another_tokenizer_are_not_taken(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "PART", 1 << 14)
    out, whole = tmp_path / "corpus", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        write_corpus(interrupted(DOCUMENTS, 30), tokenizer, out)
    assert list((out / ".parts").glob("0*.npz"))
    other = train_wordpiece(DOCUMENTS, 1200)
    write_corpus(DOCUMENTS, other, out)
    assert "started over: what an earlier run had begun was of other text" in capsys.readouterr().out
    write_corpus(DOCUMENTS, other, whole)
    assert contents(out) == contents(whole)


def test_a_finished_corpus_stays_and_one_inside_the_text_is_not_read(text, capsys):
    out = text / "corpus"
    command = ["tokenize", str(text), "--out", str(out), "--vocab-size", "30000", "--cased"]
    assert main(command) == 0
    size, before = Corpus.open(out).tokenizer.get_vocab_size(), contents(out)
    printed = capsys.readouterr().out
    for words in (f"vocabulary: {size:,} tokens of the 30,000 asked for", "train: ", "val:   ", "tokens per word"):
        assert words in printed
    assert f"--data.init_args.root {out}" in printed
    assert main(command) == 0
    assert f"{out} was finished before" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "holds a corpus of other text or options" in capsys.readouterr().err
    assert contents(out) == before


def test_vocabularies_above_two_bytes_take_four(tmp_path):
    assert [token_type(size) for size in (100, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
    vocabulary = [*BERT_SPECIAL, *(f"w{number}" for number in range(70_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "a.txt").write_text("w1 w69999\n" * 10_000)
    args = ["--out", str(tmp_path / "corpus"), "--tokenizer", str(tmp_path / "vocab.txt")]
    assert main(["tokenize", str(tmp_path / "a.txt"), *args]) == 0
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.train.dtype == np.uint32
    assert corpus.train[:2].tolist() == [6, 70_004]


def test_damaged_corpora_are_refused_in_one_line(tokenizer, tmp_path):
    folder = tmp_path / "corpus"
    write_corpus(DOCUMENTS, tokenizer, folder)
    good = contents(folder)

    def refused():
        with pytest.raises(InputError) as error:
            Corpus.open(folder)
        assert "\n" not in str(error.value)
        for name, data in good.items():
            (folder / name).write_bytes(data)
        return str(error.value)

    size = len(good["train.bin"])
    os.truncate(folder / "train.bin", size - 2)
    assert f"train.bin has {size - 2:,} bytes, expected {size:,}" in refused()
    (folder / "val.bin").unlink()
    assert "val.bin has 0 bytes" in refused()
    metadata = json.loads(good["corpus.json"])
    (folder / "corpus.json").write_text(json.dumps(metadata | {"format": 9}))
    assert "has format 9, expected 1" in refused()
    (folder / "corpus.json").write_text("{")
    assert "corpus.json is damaged" in refused()
    save_tokenizer(train_wordpiece(DOCUMENTS, 300), folder / "tokenizer")
    assert "is not the tokenizer that made this corpus" in refused()
    (folder / "corpus.json").unlink()
    assert "is no corpus" in refused()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["none.txt"], "none.txt is missing"),
        (["empty.txt"], "empty.txt holds no text"),
        (["latin.txt"], "latin.txt:1 is not UTF-8"),
        (["one.jsonl"], "the text makes 1 document(s): one to train on and one to hold out are needed"),
        (["good.txt", "--tokenizer", "vocab.txt"], "vocab.txt has no [MASK]"),
        (["good.txt", "--tokenizer", "none"], "none is missing"),
        (["good.txt", "--tokenizer", "vocab.txt", "--vocab-size", "99"], "--tokenizer brings its own vocabulary"),
        (["good.txt", "--val-fraction", "0"], "val_fraction must be above 0 and at most 0.5, got 0.0"),
        (["good.txt", "--vocab-size", "3"], "vocab_size must be at least 64, got 3"),
        (["good.txt", "--workers", "-1"], "workers must be 0"),
        (["good.txt", "--out", "good.txt/corpus"], "good.txt"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_corpus(args, reason, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "empty.txt": b"",
        "latin.txt": "naïve".encode("latin1"),
        "one.jsonl": b'{"text": "a b c"}',
        "good.txt": b"word and word\n\n" * 5000,
        "vocab.txt": "\n".join(BERT_SPECIAL[:-1]).encode(),
    }.items():
        Path(name).write_bytes(data)
    assert main(["tokenize", *args, *([] if "--out" in args else ["--out", "corpus"])]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("bamboo: error: ")
    assert reason in lines[-1]
    assert not Path("corpus/corpus.json").exists()


def test_the_vocabulary_is_trained_on_a_sample_of_the_whole_input(tmp_path, capsys):
    folder = tmp_path / "text"
    folder.mkdir()
    for number, letters in enumerate(("abcdefgh", "ijklmnop")):  # 1.5 MB each, of words that the other has not
        words = [f"{a}{b}{c} " for a in letters for b in letters for c in letters]
        (folder / f"{number}.txt").write_text("".join(words * 750))
    arguments = ["tokenize", str(folder), "--vocab-size", "3000", "--vocab-sample", "1"]
    assert main([*arguments, "--out", str(tmp_path / "corpus")]) == 0
    tokens = Corpus.open(tmp_path / "corpus").tokenizer.get_vocab()
    assert {"aaa", "hhh", "iii", "ppp"} <= tokens.keys()
    assert main([*arguments[:-1], "0", "--out", str(tmp_path / "other")]) == 2
    assert "vocab_sample must be at least 1 MiB, got 0" in capsys.readouterr().err
    assert main([*arguments[:-2], "--out", str(tmp_path / "corpus")]) == 2
    assert "holds a corpus of other text or options" in capsys.readouterr().err
