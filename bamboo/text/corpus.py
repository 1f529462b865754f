"""A packed corpus: the tokens of many documents end to end, on disk, mapped into memory when read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bamboo.errors import InputError
from bamboo.text.tokenizer import load_tokenizer

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
