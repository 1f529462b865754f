"""Text to a packed corpus on all cores, against the batch encoding of tokenizers alone; and the memory that it takes.

Both sides encode the same documents, the language manual of Python and timm's glosses, with the same vocabulary, and
take turns. Ours ends with the finished corpus on the disk; the peer only encodes. All of it runs in a process of its
own, in which nothing has set the number of threads before.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from bamboo.text.packing import write_corpus
from bamboo.text.wordpiece import train_wordpiece

ROUNDS = 3
COPIES = 6
"""Of the 2 MB of text, which are too few to measure."""
BATCH = 1000


def shipped_text() -> list[str]:
    """The language manual by topic, and the glosses by the thousand: 2 MB of English."""
    package = find_spec("timm")
    assert package
    assert package.origin
    file = Path(package.origin).parent / "data" / "_info" / "imagenet_synset_to_definition.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return [*topics.values(), *("\n".join(lines[start : start + 50]) for start in range(0, len(lines), 50))]


def encode_batches(documents: list[str], tokenizer: Tokenizer) -> int:
    """Encode with tokenizers alone; the number of tokens."""
    tokens = 0
    for start in range(0, len(documents), BATCH):
        found = tokenizer.encode_batch(documents[start : start + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in found)
    return tokens


def tree(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [child for word in (task / "children").read_text().split() for child in tree(int(word))]
    return found


def memory(process: int) -> float:
    """Megabytes of a process and all below it; pages that they share count once."""
    total = 0
    try:
        for each in tree(process):
            total += int(Path(f"/proc/{each}/smaps_rollup").read_text().split("Pss:")[1].split()[0])
    except (OSError, IndexError):  # one has just ended
        return 0.0
    return total / 1024


def peak_memory(megabytes: int) -> float:
    """The peak of the memory of `bamboo tokenize` on one long file, in MB: training a vocabulary and packing."""
    with tempfile.TemporaryDirectory() as folder:
        text = "\n\n".join(shipped_text())
        source = Path(folder) / "text.txt"
        source.write_text("\n\n".join([text] * (megabytes * 1_000_000 // len(text))), encoding="utf-8")
        command = [sys.executable, "-m", "bamboo", "tokenize", str(source), "--out", f"{folder}/corpus"]
        run = subprocess.Popen([*command, "--vocab-size", "8192"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak, ended = 0.0, threading.Event()
        threading.Thread(target=lambda: (run.wait(), ended.set()), daemon=True).start()
        while not ended.wait(0.1):
            peak = max(peak, memory(run.pid))
        if run.returncode:
            raise RuntimeError(f"bamboo tokenize ended with {run.returncode}")
    return peak


def rates() -> dict[str, float]:
    """Median MB/s of both sides, and the median of the ratios within a round."""
    documents = shipped_text() * COPIES
    size = sum(len(document.encode()) for document in documents) / 1e6
    tokenizer, workers = train_wordpiece(documents[: len(documents) // COPIES], 8192), len(os.sched_getaffinity(0))
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    found: dict[str, list[float]] = {"bamboo": [], "tokenizers": []}
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        tokens = encode_batches(documents, tokenizer)
        found["tokenizers"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            corpus = write_corpus(documents, tokenizer, folder)
            found["bamboo"].append(time.perf_counter() - start)
            # The manual names no special token, so that both sides have the same tokens.
            counts = [corpus.metadata[split] for split in ("train", "val")]
            assert sum(count["tokens"] - count["documents"] for count in counts) == tokens
    found = {name: seconds[1:] for name, seconds in found.items()}  # the first round warms up
    ratios = [peer / ours for ours, peer in zip(found["bamboo"], found["tokenizers"], strict=True)]
    result = {f"{name}_mb_per_s": size / statistics.median(seconds) for name, seconds in found.items()}
    return {**result, "bamboo_over_tokenizers": statistics.median(ratios), "cores": workers}


def bench_tokenize() -> dict[str, float]:
    """Rates, in a process of its own, and peak memory on a file of 48 MB."""
    run = subprocess.run([sys.executable, "-m", __name__], stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return {**result, "peak_mb": peak_memory(48)}


if __name__ == "__main__":
    print(json.dumps(rates()))
