"""A packed corpus: the tokens of many documents end to end, on disk, mapped into memory when read."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bamboo.errors import InputError
from bamboo.files import atomic_write
from bamboo.seeds import derive_seed
from bamboo.text.packing import pack, token_type
from bamboo.text.wordpiece import load_tokenizer, save_tokenizer

FORMAT = 1
SPLITS = ("train", "val")
PARTS = ".parts"


@dataclass(frozen=True)
class Stream:
    """The tokens of one split, each document followed by one [SEP]; there is no [CLS] and no padding.

    Attributes:
        tokens: of shape (tokens,), uint16 where the vocabulary allows, else uint32.
        ends: of shape (documents,), int64: the position just behind the [SEP] of each document.
    """

    tokens: NDArray[np.unsignedinteger]
    ends: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.ends)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Corpus:
    """What `bamboo tokenize` wrote into a folder.

    Attributes:
        path: the folder.
        tokenizer: that made the tokens.
        tokenizer_json: its `to_str()`; two tokenizers are equal if these are.
        vocab_size: number of its tokens.
        train: tokens to train on.
        val: tokens that are held out.
        metadata: what `corpus.json` says.
    """

    path: Path
    tokenizer: Tokenizer
    tokenizer_json: str
    vocab_size: int
    train: Stream
    val: Stream
    metadata: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Map a corpus into memory.

        Raises:
            InputError: where the folder is no corpus, or an unfinished, damaged or newer one.
        """
        path = Path(path)
        metadata = _read_metadata(path)
        tokenizer = load_tokenizer(path / "tokenizer")
        text = tokenizer.to_str()
        if fingerprint(text) != metadata["tokenizer"]:
            raise InputError(f"{path / 'tokenizer'} is not the tokenizer that made this corpus: make the corpus again")
        streams = {split: _open_stream(path, split, metadata) for split in SPLITS}
        return cls(path, tokenizer, text, tokenizer.get_vocab_size(), **streams, metadata=metadata)


def _read_metadata(path: Path) -> dict[str, Any]:
    file = path / "corpus.json"
    if not file.is_file():
        if (path / PARTS).is_dir():
            raise InputError(f"{path} is unfinished: run the same `bamboo tokenize` again, which goes on from there")
        raise InputError(f"{path} is no corpus (there is no corpus.json): make one with `bamboo tokenize`")
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        version = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: make the corpus again") from error
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, expected {FORMAT}: make the corpus again")
    return cast(dict[str, Any], metadata)


def _open_stream(path: Path, split: str, metadata: Mapping[str, Any]) -> Stream:
    kind, counts = metadata["dtype"], metadata[split]
    tokens, ends = path / f"{split}.bin", path / f"{split}.ends"
    for file, length, each in ((tokens, counts["tokens"], kind), (ends, counts["documents"], "int64")):
        size, expected = file.stat().st_size if file.is_file() else 0, length * np.dtype(each).itemsize
        if size != expected:
            raise InputError(f"{file} has {size:,} bytes, expected {expected:,}: copy or make the corpus again")
    stream = Stream(np.memmap(tokens, kind, "r"), np.memmap(ends, np.int64, "r"))
    if stream.ends[-1] != len(stream):
        raise InputError(f"{ends} does not fit {tokens.name}: copy or make the corpus again")
    return stream


def fingerprint(text: str) -> str:
    """Of a tokenizer, from its `to_str()`."""
    return sha256(text.encode()).hexdigest()


def write_corpus(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    workers: int = 1,
    total: int | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> Corpus:
    """Encode documents and write the corpus, in memory that does not grow with their number.

    The files are the same for any number of workers. After a crash, the same call goes on from the parts that were
    finished, which lie in a hidden folder inside `out`; `corpus.json` is written last.

    Args:
        documents: are streamed. Those without a token are left out.
        tokenizer: from `train_wordpiece` or `load_tokenizer`.
        out: folder for the corpus.
        val_fraction: share of the documents that is held out, as `held_out` draws them.
        seed: of that draw.
        workers: processes; with 1 everything happens in this one.
        total: bytes of text to come, if known, for the progress bar.
        made_from: what else to note in `corpus.json`.

    Raises:
        InputError: if there are fewer than two documents, `out` holds a corpus already, or cannot be written to.
    """
    out = Path(out)
    check_fraction(val_fraction)
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if (out / "corpus.json").exists():
        raise InputError(f"{out} holds a corpus already: name another folder, or delete this one")
    try:
        parts = pack(documents, tokenizer, out / PARTS, workers, total)
        counts = _join(parts, out, val_fraction, seed)
        save_tokenizer(tokenizer, out / "tokenizer")
        metadata = {
            "format": FORMAT,
            "dtype": token_type(tokenizer.get_vocab_size()),
            "vocab_size": tokenizer.get_vocab_size(),
            "tokenizer": fingerprint(tokenizer.to_str()),
            **counts,
            "made_from": dict(made_from or {}),
        }
        with atomic_write(out / "corpus.json") as temporary:
            temporary.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror}") from error
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return Corpus.open(out)


def check_fraction(val_fraction: float) -> None:
    """Raise an `InputError` for a share that cannot be held out."""
    if not 0 < val_fraction <= 0.5:
        raise InputError(f"val_fraction must be above 0 and at most 0.5, got {val_fraction}")


def held_out(documents: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """The numbers of the documents that are held out: of each 1 / fraction in a row one, drawn by a hash of the seed.

    So the share is kept along the corpus, and documents that are added at its end change nothing before them. Of fewer
    documents than that, one is held out.
    """
    numbers = []
    for group in range(math.ceil(documents * fraction)):
        first, last = math.ceil(group / fraction), math.ceil((group + 1) / fraction)
        last = last if group else min(last, documents)
        number = first + derive_seed(seed, "held out", group) % (last - first)
        if number < documents:
            numbers.append(number)
    return np.array(numbers, np.int64)


def _join(parts: Sequence[Path], out: Path, fraction: float, seed: int) -> dict[str, Any]:
    """Write the documents of the parts in their order, each into its split."""
    documents = sum(len(ends) for ends in _members(parts, "ends"))
    if documents < 2:
        raise InputError(f"the text makes {documents} document(s): one to train on and one to hold out are needed")
    chosen = held_out(documents, fraction, seed)
    tally = {split: {"tokens": 0, "documents": 0} for split in SPLITS}
    first, words, unknown = 0, 0, 0
    names = [f"{split}.{kind}" for split in SPLITS for kind in ("bin", "ends")]
    with ExitStack() as stack:
        # Among the parts until they are complete, so that those of a run that was killed are written over.
        files = {name: stack.enter_context((out / PARTS / name).open("wb")) for name in names}
        for path in parts:
            with np.load(path) as part:
                tokens, ends = part["tokens"], part["ends"]
                words, unknown = words + int(part["words"]), unknown + int(part["unknown"])
            outside = np.zeros(len(ends), bool)
            outside[chosen[slice(*np.searchsorted(chosen, (first, first + len(ends))))] - first] = True
            first += len(ends)
            lengths = np.diff(ends, prepend=0)
            for split, mine in (("train", ~outside), ("val", outside)):
                before = tally[split]["tokens"]
                files[f"{split}.bin"].write(tokens[np.repeat(mine, lengths)].tobytes())
                files[f"{split}.ends"].write((before + np.cumsum(lengths[mine], dtype=np.int64)).tobytes())
                tally[split] = {
                    "tokens": before + int(lengths[mine].sum()),
                    "documents": tally[split]["documents"] + int(mine.sum()),
                }
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    for name in names:
        (out / PARTS / name).replace(out / name)
    return {**tally, "words": words, "unknown": unknown}


def _members(parts: Sequence[Path], name: str) -> Iterator[NDArray[Any]]:
    for path in parts:
        with np.load(path) as part:
            yield part[name]
