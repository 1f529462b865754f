import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from tokenizers import Tokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text import packing
from bamboo.text.corpus import Corpus, held_out, write_corpus
from bamboo.text.packing import token_type
from bamboo.text.wordpiece import SPECIAL, save_tokenizer, special_ids, train_wordpiece

DOCUMENTS = [
    *list(topics.values())[:60],
    "[MASK] [SEP] and [PAD] are text",
    "漢字 é e\u0301 👩‍👩‍👧 \0 السَّلامُ",
    "\u200b\x07",  # has no token
    "x" * 5000,
    "word " * 20_000,
]


@pytest.fixture(scope="module", params=["uncased", "cased"])
def tokenizer(request):
    return train_wordpiece([*topics.values()], 1500, lowercase=request.param == "uncased")


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


def documents_of(stream):
    return [tokens.tolist() for tokens in np.split(np.asarray(stream.tokens), stream.ends[:-1])]


def test_the_corpus_gives_back_every_document(tokenizer, tmp_path):
    corpus = write_corpus(DOCUMENTS, tokenizer, tmp_path / "corpus", val_fraction=0.2, seed=3)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    alone = [plain.encode(document, add_special_tokens=False).ids for document in DOCUMENTS]
    separator = special_ids(tokenizer)["sep"]
    expected = [[*ids, separator] for ids in alone if ids]
    assert len(expected) == len(DOCUMENTS) - 1
    outside = held_out(len(expected), 0.2, 3)
    assert documents_of(corpus.val) == [expected[number] for number in outside]
    inside = sorted({*range(len(expected))} - {*outside.tolist()})
    assert documents_of(corpus.train) == [expected[number] for number in inside]
    for found, number in zip(documents_of(corpus.train), inside, strict=True):
        assert corpus.tokenizer.decode(found[:-1]) == tokenizer.decode(expected[number][:-1])
    assert corpus.tokenizer_json == tokenizer.to_str()
    assert corpus.vocab_size == 1500
    assert (corpus.val.documents, len(corpus.val)) == (len(outside), sum(len(expected[number]) for number in outside))


def test_a_document_of_megabytes_costs_no_more_per_character(tokenizer, tmp_path):
    seconds = []
    for copies, count in ((1, 40), (40, 1)):
        documents = ["\n".join([topics["assignment"]] * copies * 5)] * count
        start = time.process_time()
        corpus = write_corpus([*documents, "end"], tokenizer, tmp_path / f"{copies}")
        seconds.append(time.process_time() - start)
        assert len(corpus.train) + len(corpus.val) > 200_000
    assert seconds[1] < 2 * seconds[0]


def test_special_tokens_stand_in_a_corpus_at_the_ends_of_documents_alone(tokenizer, tmp_path):
    corpus = write_corpus(DOCUMENTS, tokenizer, tmp_path / "corpus")
    ids = special_ids(tokenizer)
    for stream in (corpus.train, corpus.val):
        assert np.flatnonzero(stream.tokens == ids["sep"]).tolist() == (stream.ends - 1).tolist()
        assert not np.isin(stream.tokens, [ids["pad"], ids["cls"], ids["mask"]]).any()


def test_the_bytes_are_the_same_for_any_number_of_workers(text, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(packing, "PART", 1 << 16)
    written = []
    for workers in (1, 2, 3):
        out = tmp_path / f"corpus{workers}"
        args = ["--out", str(out), "--vocab-size", "1000", "--workers", str(workers)]
        assert main(["tokenize", str(text), *args]) == 0
        written.append(contents(out))
    assert written[0] == written[1] == written[2]
    assert set(written[0]) == {
        *(f"{split}.{kind}" for split in ("train", "val") for kind in ("bin", "ends")),
        *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")),
        "corpus.json",
    }
    printed = capfd.readouterr()
    assert "tokenizing" in printed.err
    for word in ("train: ", "val:   ", "tokens per word", "[UNK]", f"--data.init_args.root {tmp_path / 'corpus3'}"):
        assert word in printed.out


SCRIPT = """
import os
import signal
import sys
from pathlib import Path
from bamboo.cli import main
from bamboo.text import packing

run = packing._run


def killed_after(count):
    def until(*args):
        for number, size in enumerate(run(*args), 1):
            yield size
            if number == count:
                tasks = Path("/proc/self/task").iterdir()
                print(*(task.joinpath("children").read_text() for task in tasks), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    return until


if __name__ == "__main__":
    packing.PART = 1 << 15
    if "KILL_AFTER" in os.environ:
        packing._run = killed_after(int(os.environ["KILL_AFTER"]))
    sys.exit(main(sys.argv[1:]))
"""


def children(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for worker processes in /proc")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_kill_9_the_same_command_ends_in_the_same_bytes(text, tmp_path, workers):
    (tmp_path / "run.py").write_text(SCRIPT)
    out, whole = tmp_path / "corpus", tmp_path / "whole"
    command = [sys.executable, str(tmp_path / "run.py"), "tokenize", str(text), "--vocab-size", "1000"]
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    environment = {**os.environ, "KILL_AFTER": "3"}
    killed = subprocess.run(
        [*command, "--out", str(out), "--workers", workers], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert killed.returncode == -signal.SIGKILL
    started, parts = killed.stdout.split(), out / ".parts"
    assert workers == "1" or len(started) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    with pytest.raises(InputError, match="is unfinished: run the same `bamboo tokenize` again"):
        Corpus.open(out)
    done = list(parts.glob("0*.npz"))
    assert len(done) >= 3
    again = subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True)
    assert f"went on from {len(done)} of " in again.stdout
    assert contents(out) == contents(whole)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for worker processes in /proc")
def test_a_worker_that_is_killed_ends_the_command_with_one_line(text, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    save_tokenizer(train_wordpiece([*topics.values()], 300), tmp_path / "tokenizer")
    command = [sys.executable, str(tmp_path / "run.py"), "tokenize", str(text), "--out", str(tmp_path / "corpus")]
    command += ["--tokenizer", str(tmp_path / "tokenizer"), "--workers", "2"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "corpus" / ".parts"
    while len(list(parts.glob("0*.npz"))) < 2 and run.poll() is None:
        time.sleep(0.005)
    workers = [pid for pid in children(run.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    error = run.communicate()[1]
    assert run.returncode == 2
    assert error.splitlines()[-1].startswith("bamboo: error: a worker was killed")
    assert main(command[2:]) == 0


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
    assert (
        "started over: what an earlier run had begun was of other text or another tokenizer" in capsys.readouterr().out
    )
    write_corpus(DOCUMENTS, other, whole)
    assert contents(out) == contents(whole)


def test_a_finished_corpus_stays_and_is_not_overwritten(text, tmp_path, capsys):
    out = tmp_path / "corpus"
    command = ["tokenize", str(text), "--out", str(out), "--vocab-size", "1000", "--workers", "1"]
    assert main(command) == 0
    before = contents(out)
    assert main(command) == 0
    assert f"{out} was finished before" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "holds a corpus of other text or options" in capsys.readouterr().err
    with (text / "short.md").open("a") as file:
        file.write("more")
    assert main(command) == 2
    assert contents(out) == before
    with pytest.raises(InputError, match="holds a corpus already"):
        write_corpus(DOCUMENTS, train_wordpiece(DOCUMENTS, 100), out)


def test_a_corpus_inside_the_folder_that_is_read_is_not_read(text, capsys):
    command = ["tokenize", str(text), "--out", str(text / "corpus"), "--vocab-size", "1000", "--workers", "1"]
    assert main(command) == main(command) == 0
    assert "was finished before" in capsys.readouterr().out


def test_one_book_in_one_file_has_a_held_out_share(text, tmp_path):
    command = ["tokenize", str(text / "manual.txt"), "--out", str(tmp_path / "corpus"), "--vocab-size", "1000"]
    assert main([*command, "--workers", "1"]) == 0
    corpus = Corpus.open(tmp_path / "corpus")
    assert 0.01 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < 0.1


def test_a_given_tokenizer_is_taken_as_it_is(tokenizer, text, tmp_path, capsys):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    command = ["tokenize", str(text), "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "corpus")]) == 0
    assert Corpus.open(tmp_path / "corpus").tokenizer_json == tokenizer.to_str()
    assert main([*command, "--out", str(tmp_path / "new"), "--vocab-size", "1000"]) == 2
    assert "--tokenizer brings its own vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_vocabulary_that_stays_small_is_mentioned(text, tmp_path, capsys):
    command = ["tokenize", str(text), "--out", str(tmp_path / "corpus"), "--workers", "1", "--cased"]
    assert main(command) == 0
    corpus = Corpus.open(tmp_path / "corpus")
    assert f"vocabulary: {corpus.vocab_size:,} tokens of the 30,522 asked for" in capsys.readouterr().out
    assert corpus.tokenizer.encode("Café", add_special_tokens=False).ids != corpus.tokenizer.encode("cafe").ids[1:-1]


def test_held_out_documents_are_spread_evenly_and_follow_the_seed():
    numbers = held_out(1000, 0.05, 0)
    assert (numbers // 20).tolist() == list(range(50))
    assert len({*(numbers % 20).tolist()}) > 10
    assert numbers.tolist() != held_out(1000, 0.05, 1).tolist()
    assert held_out(700, 0.05, 0).tolist() == numbers[:35].tolist()
    assert len(held_out(1000, 0.3, 0)) == 300
    assert [len(held_out(documents, 0.01, 5)) for documents in (2, 3, 50, 100)] == [1, 1, 1, 1]


def test_small_vocabularies_take_two_bytes():
    assert [token_type(size) for size in (100, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def test_large_vocabularies_take_four_bytes(tmp_path):
    vocabulary = [*SPECIAL, *(f"w{number}" for number in range(70_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    (tmp_path / "a.txt").write_text("w1 w69999\n" * 10_000)
    args = ["--out", str(tmp_path / "corpus"), "--tokenizer", str(tmp_path / "vocab.txt"), "--workers", "1"]
    assert main(["tokenize", str(tmp_path / "a.txt"), *args]) == 0
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.train.tokens[:2].tolist() == [6, 70_004]


def test_damaged_corpora_are_refused_in_one_line(tokenizer, tmp_path):
    folder = tmp_path / "corpus"
    write_corpus(DOCUMENTS, tokenizer, folder)
    good = contents(folder)

    def refused():
        with pytest.raises(InputError) as found:
            Corpus.open(folder)
        assert "\n" not in str(found.value)
        for name, data in good.items():
            (folder / name).write_bytes(data)
        return str(found.value)

    size = len(good["train.bin"])
    os.truncate(folder / "train.bin", size - 2)
    assert f"train.bin has {size - 2:,} bytes, expected {size:,}" in refused()
    (folder / "val.ends").unlink()
    assert "val.ends has 0 bytes" in refused()
    (folder / "train.ends").write_bytes(bytes(len(good["train.ends"])))
    assert "train.ends does not fit train.bin" in refused()
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
        (["empty.txt"], "empty.txt is empty"),
        (["binary.txt"], "binary.txt holds a NUL at byte 1"),
        (["latin.txt"], "latin.txt:1 is not UTF-8"),
        (["one.jsonl"], "the text makes 1 document(s): one to train on and one to hold out are needed"),
        (["good.txt", "--tokenizer", "vocab.txt"], "vocab.txt has no [MASK]"),
        (["good.txt", "--tokenizer", "none"], "none is missing"),
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
        "binary.txt": b"a\0b",
        "latin.txt": "naïve".encode("latin1"),
        "one.jsonl": b'{"text": "a b c"}',
        "good.txt": b"word and word\n\n" * 5000,
        "vocab.txt": "\n".join(SPECIAL[:-1]).encode(),
    }.items():
        Path(name).write_bytes(data)
    assert main(["tokenize", *args, *([] if "--out" in args else ["--out", "corpus"]), "--workers=1", *args[1:]]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("bamboo: error: ")
    assert reason in lines[-1]
    assert not Path("corpus/corpus.json").exists()


PEAK = """
import sys
from pathlib import Path
from bamboo.text.commands import tokenize

tokenize([Path(sys.argv[1])], out=Path(sys.argv[2]), tokenizer=sys.argv[3], workers=1)
print("peak", Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks for the peak of memory in /proc")
def test_memory_does_not_grow_with_the_text(tmp_path):
    save_tokenizer(train_wordpiece([*topics.values()], 1500), tmp_path / "tokenizer")
    peaks = []
    for megabytes in (3, 12):
        path = tmp_path / f"{megabytes}.txt"
        manual = "\n".join(topics.values())
        path.write_text(manual * (megabytes * 1_000_000 // len(manual)))
        args = [sys.executable, "-c", PEAK, str(path), str(tmp_path / f"{megabytes}"), str(tmp_path / "tokenizer")]
        run = subprocess.run(args, capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout.split("peak")[1]) / 1024)
    assert peaks[1] < 200
    assert peaks[1] - peaks[0] < 8
