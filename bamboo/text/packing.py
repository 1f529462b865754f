"""Documents to tokens over several processes, into files that a later run finds again.

Documents are taken a few megabytes at a time. Each such part becomes a file whose name holds its number and a hash of
the documents and the tokenizer: after a crash, a part is finished if and only if its file is there.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from bamboo.files import atomic_write
from bamboo.text.pieces import pieces
from bamboo.text.processes import light_pool
from bamboo.text.wordpiece import special_ids

PART = 2 << 20
"""Bytes of text in a part, until the end of a document."""


class Part(NamedTuple):
    """Documents to encode, and the file for their tokens."""

    path: Path
    documents: list[str]
    size: int


def token_type(vocab_size: int) -> str:
    """The smallest of numpy's types for the numbers of so many tokens."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def pack(documents: Iterable[str], tokenizer: Tokenizer, folder: Path, workers: int, total: int | None) -> list[Path]:
    """Encode documents into `folder`, with a progress bar; gives the files of the parts in order.

    Args:
        documents: are streamed.
        tokenizer: for all documents. "[MASK]" and the like within a document are text to it, not special tokens.
        folder: for the parts; those that are there already are not made again.
        workers: processes; with 1 everything happens in this one.
        total: bytes of text to come, if known, for the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer.to_str()
    leftover, paths, reused = {path.name for path in folder.glob("*.npz")}, [], 0

    with tqdm(total=total, unit="B", unit_scale=True, desc="tokenizing", mininterval=1, smoothing=0.05) as bar:

        def unfinished() -> Iterator[Part]:
            nonlocal reused
            for part in _parts(documents, text, folder):
                paths.append(part.path)
                if part.path.name in leftover:
                    reused += 1
                    bar.update(part.size)
                else:
                    yield part

        for size in _run(unfinished(), text, workers):
            bar.update(size)
        bar.total = bar.n
    if reused:
        print(f"went on from {reused} of {len(paths)} parts that an earlier run had finished")
    elif leftover:
        print("started over: what an earlier run had begun was of other text or another tokenizer")
    return paths


def _parts(documents: Iterable[str], text: str, folder: Path) -> Iterator[Part]:
    key = blake2b(text.encode()).digest()
    held: list[str] = []
    number, size, digest = 0, 0, blake2b(key, digest_size=12)
    for document in chain(documents, [None]):
        if size >= PART or (document is None and held):
            yield Part(folder / f"{number:06}-{digest.hexdigest()}.npz", held, size)
            held, number, size, digest = [], number + 1, 0, blake2b(key, digest_size=12)
        if document is not None:
            held.append(document)
            data = document.encode()
            size += len(data)
            digest.update(len(data).to_bytes(8, "big") + data)


def _run(parts: Iterable[Part], text: str, workers: int) -> Iterator[int]:
    """Encode parts; the size of each once it is finished."""
    if workers == 1:
        _begin(text)
        yield from map(_encode_part, parts)
        return
    with light_pool(workers, _begin, text) as pool:
        running: deque[Future[int]] = deque()
        for part in parts:
            running.append(pool.submit(_encode_part, part))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


_tokenizer: Tokenizer


def _begin(text: str) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.from_str(text)
    _tokenizer.encode_special_tokens = True


def _encode_part(part: Part) -> int:
    ids = special_ids(_tokenizer)
    kind = token_type(_tokenizer.get_vocab_size())
    tokens: list[NDArray[np.unsignedinteger]] = []
    lengths, words = [], 0
    for document in part.documents:
        encoded = [np.array(found, kind) for found in encode(_tokenizer, document)]
        if encoded:
            tokens += [*encoded, np.array([ids["sep"]], kind)]
            lengths.append(sum(map(len, encoded)) + 1)
            words += sum(len(piece.split()) for piece in pieces(document))
    joined = np.concatenate(tokens) if tokens else np.zeros(0, kind)
    unknown = np.count_nonzero(joined == ids["unk"])
    with atomic_write(part.path) as temporary, temporary.open("wb") as file:
        np.savez(file, tokens=joined, ends=np.cumsum(lengths, dtype=np.int64), words=words, unknown=unknown)
    return part.size


def encode(tokenizer: Tokenizer, text: str) -> Iterator[list[int]]:
    """The tokens of a text without special tokens, piece by piece; nothing for a text that normalises to nothing."""
    for piece in pieces(text):
        ids = tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids
        if ids:
            yield ids
