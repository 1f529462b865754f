"""A packed corpus: the tokens of many documents end to end, on disk, mapped into memory when read."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bamboo.errors import InputError
from bamboo.text.tokenizer import load_tokenizer

FORMAT = 1
SPLITS = ("train", "val")
PARTS = ".parts"

Tokens = NDArray[np.unsignedinteger]
"""Of documents end to end (N,), a [SEP] behind each; no [CLS] and no padding."""


class Corpus(NamedTuple):
    """A tokenizer, its tokens to train and to validate on, and what `corpus.json` says where there is one."""

    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    metadata: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def open(cls, path: str | Path) -> "Corpus":
        """Map a folder that `bamboo tokenize` wrote into memory.

        Raises:
            InputError: where the folder is no corpus, or an unfinished, damaged or newer one.
        """
        path = Path(path)
        metadata = _read_metadata(path)
        tokenizer = load_tokenizer(path / "tokenizer")
        if fingerprint(tokenizer) != metadata["tokenizer"]:
            raise InputError(f"{path / 'tokenizer'} is not the tokenizer that made this corpus: make the corpus again")
        train, val = (_map(path / f"{split}.bin", metadata[split]["tokens"], metadata["dtype"]) for split in SPLITS)
        return cls(tokenizer, train, val, metadata)


def _read_metadata(path: Path) -> dict[str, Any]:
    file = path / "corpus.json"
    if not file.is_file():
        if (path / PARTS).is_dir():
            raise InputError(f"{path} is unfinished: run the same `bamboo tokenize` again, which goes on from there")
        raise InputError(f"{path} is no corpus (there is no corpus.json): make one with `bamboo tokenize`")
    try:
        metadata: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = metadata["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: make the corpus again") from error
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, expected {FORMAT}: make the corpus again")
    return metadata


def _map(file: Path, length: int, dtype: str) -> Tokens:
    size, expected = file.stat().st_size if file.is_file() else 0, length * np.dtype(dtype).itemsize
    if size != expected:
        raise InputError(f"{file} has {size:,} bytes, expected {expected:,}: copy or make the corpus again")
    return np.memmap(file, dtype, "r")


def fingerprint(tokenizer: Tokenizer) -> str:
    """The same for equal tokenizers alone."""
    return sha256(tokenizer.to_str().encode()).hexdigest()
