"""Documents to a packed corpus, which a run that was killed leaves unfinished and a later one goes on with.

Documents are taken a quarter of a megabyte at a time. Each such part becomes a file whose name holds its number and a
hash of the documents and the tokenizer: after a crash, a part is finished if and only if its file is there.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from bamboo.errors import InputError
from bamboo.files import atomic_write, write_json
from bamboo.text.corpus import FORMAT, PARTS, SPLITS, Corpus, Tokens, fingerprint
from bamboo.text.tokenizer import literal, save_tokenizer, special_ids

PART = 1 << 18
"""Characters of text in a part, until the end of a document: tokenizers keeps some hundred bytes for each at a time."""


def write_corpus(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    total: int | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> Corpus:
    """Encode documents and write the corpus, in memory that does not grow with their number.

    After a crash, the same call goes on from the parts that were finished, which lie in a hidden folder inside `out`;
    `corpus.json` is written last.

    Args:
        documents: are streamed. Those without a token are left out.
        tokenizer: from `train_wordpiece` or `load_tokenizer`.
        out: folder for the corpus.
        val_fraction: share of the documents that is held out, as `held_out` chooses them.
        seed: of that choice.
        total: bytes of text to come, if known, for the progress bar.
        made_from: what else to note in `corpus.json`.

    Raises:
        InputError: if there are fewer than two documents, or `out` cannot be written to.
    """
    out = Path(out)
    size = tokenizer.get_vocab_size()
    metadata = {"format": FORMAT, "dtype": token_type(size), "vocab_size": size, "tokenizer": fingerprint(tokenizer)}
    try:
        parts = _encode_parts(documents, literal(tokenizer), out / PARTS, seed, total)
        metadata |= {**_join(parts, out, val_fraction), "made_from": dict(made_from or {})}
        save_tokenizer(tokenizer, out / "tokenizer")
        write_json(out / "corpus.json", metadata)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror}") from error
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return Corpus.open(out)


def held_out(hashes: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which documents are held out, by a hash of each (N,): those in the lowest share, at least one and never all.

    So the place of a document and what else is in the corpus do not matter, and equal documents stay together.
    """
    lowest, highest = hashes.min(), hashes.max()
    chosen: NDArray[np.bool_] = ((hashes < np.uint64(fraction * 2**64)) | (hashes == lowest)) & (hashes != highest)
    chosen[0] |= lowest == highest  # copies of one document
    return chosen


def token_type(vocab_size: int) -> str:
    """The smallest of numpy's types for the numbers of so many tokens."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def encode(documents: Sequence[str], tokenizer: Tokenizer) -> list[Tokens]:
    """The tokens of each document and a [SEP], by a `literal` tokenizer; an empty array for one that has none.

    A unigram model reads a written "<mask>" as that token all the same: it is left out, for it says nothing.
    """
    ids, kind = special_ids(tokenizer), token_type(tokenizer.get_vocab_size())
    reserved, end = [ids[role] for role in ("pad", "cls", "sep", "mask")], np.array([ids["sep"]], kind)
    arrays = [np.array(e.ids, kind) for e in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)]
    arrays = [array[~np.isin(array, reserved)] for array in arrays]
    return [np.concatenate([array, end]) if len(array) else array for array in arrays]


def _encode_parts(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, seed: int, total: int | None
) -> list[Path]:
    """Encode documents into `folder`, with a progress bar; gives the files of the parts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = {path.name for path in folder.glob("*.npz")}
    key = fingerprint(tokenizer).encode()
    paths: list[Path] = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="tokenizing", mininterval=1, smoothing=0.05) as bar:
        for part in _parts(documents):
            data = [text.encode() for text in part]
            hashes = [blake2b(text, digest_size=16, key=b"%d" % seed).digest() for text in data]
            name = blake2b(b"".join(hashes), digest_size=12, key=key).hexdigest()
            paths.append(folder / f"{len(paths):06}-{name}.npz")
            if paths[-1].name not in finished:
                _encode_part(paths[-1], part, hashes, tokenizer)
            bar.update(sum(map(len, data)))
        bar.total = bar.n
    if reused := sum(path.name in finished for path in paths):
        print(f"went on from {reused} of {len(paths)} parts that an earlier run had finished")
    elif finished:
        print("started over: what an earlier run had begun was of other text or another tokenizer")
    return paths


def _parts(documents: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(document)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _encode_part(path: Path, documents: Sequence[str], hashes: Sequence[bytes], tokenizer: Tokenizer) -> None:
    arrays = encode(documents, tokenizer)
    tokens, lengths = np.concatenate(arrays), np.array([len(array) for array in arrays])
    unknown = special_ids(tokenizer).get("unk", -1)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            tokens=tokens,
            lengths=lengths[lengths > 0],
            hashes=np.frombuffer(b"".join(digest[:8] for digest in hashes), "<u8")[lengths > 0],
            words=sum(len(text.split()) for text in documents),
            unknown=np.count_nonzero(tokens == unknown),
        )


def _join(parts: Sequence[Path], out: Path, fraction: float) -> dict[str, Any]:
    """Write the documents of the parts in their order, each into its split; what `corpus.json` says of them."""
    hashes, totals = [np.empty(0, np.uint64)], {"words": 0, "unknown": 0}
    for path in parts:
        with np.load(path) as part:
            hashes.append(part["hashes"])
            totals = {name: total + int(part[name]) for name, total in totals.items()}
    documents = np.concatenate(hashes)
    if len(documents) < 2:
        raise InputError(f"the text makes {len(documents)} document(s): one to train on and one to hold out are needed")
    outside = held_out(documents, fraction)
    choices = zip(SPLITS, (~outside, outside), strict=True)
    return {**{split: _write_split(parts, chosen, out / f"{split}.bin") for split, chosen in choices}, **totals}


def _write_split(parts: Sequence[Path], chosen: NDArray[np.bool_], path: Path) -> dict[str, int]:
    position, tokens = 0, 0
    with path.open("wb") as file:
        for name in parts:
            with np.load(name) as part:
                lengths = part["lengths"]
                own = chosen[position : position + len(lengths)]
                part["tokens"][np.repeat(own, lengths)].tofile(file)
            position, tokens = position + len(lengths), tokens + int(lengths[own].sum())
        os.fsync(file.fileno())
    return {"tokens": tokens, "documents": int(chosen.sum())}
