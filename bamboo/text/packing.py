"""Documents to a packed corpus, which a run that was killed leaves unfinished and a later one goes on with.

Documents are taken a megabyte at a time. Each such part becomes a file whose name holds its number and a hash of
the documents and the tokenizer: after a crash, a part is finished if and only if its file is there.
"""

import json
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
from bamboo.files import atomic_write
from bamboo.text.corpus import FORMAT, PARTS, SPLITS, Corpus, fingerprint
from bamboo.text.tokenizer import pieces, save_tokenizer, special_ids

PART = 1 << 20
"""Characters of text in a part, until the end of a document."""
BATCH = 64
"""Pieces of text that the threads of tokenizers encode at once."""


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
    """Encode documents and write the corpus, in memory that does not grow with their length.

    After a crash, the same call goes on from the parts that were finished, which lie in a hidden folder inside `out`;
    `corpus.json` is written last.

    Args:
        documents: are streamed. Those without a token are left out.
        tokenizer: from `train_wordpiece` or `load_tokenizer`. `[MASK]` and the like within a document are text to it.
        out: folder for the corpus.
        val_fraction: share of the documents that is held out, as `held_out` chooses them.
        seed: of that choice.
        total: bytes of text to come, if known, for the progress bar.
        made_from: what else to note in `corpus.json`.

    Raises:
        InputError: if there are fewer than two documents, `out` holds a corpus already, or cannot be written to.
    """
    out = Path(out)
    check_fraction(val_fraction)
    if (out / "corpus.json").exists():
        raise InputError(f"{out} holds a corpus already: name another folder, or delete this one")
    try:
        parts = _encode_all(documents, tokenizer, out / PARTS, seed, total)
        counts = _join(parts, out, val_fraction)
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


def _encode_all(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, seed: int, total: int | None
) -> list[Path]:
    """Encode documents into `folder`, with a progress bar; gives the files of the parts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    leftover = {path.name for path in folder.glob("*.npz")}
    paths: list[Path] = []
    literal = Tokenizer.from_str(tokenizer.to_str())
    literal.encode_special_tokens = True
    key = fingerprint(tokenizer.to_str()).encode()
    with tqdm(total=total, unit="B", unit_scale=True, desc="tokenizing", mininterval=1, smoothing=0.05) as bar:
        for part in _parts(documents):
            data = [text.encode() for text in part]
            hashes = [blake2b(text, digest_size=16, key=b"%d" % seed).digest() for text in data]
            name = blake2b(b"".join(hashes), digest_size=12, key=key).hexdigest()
            paths.append(folder / f"{len(paths):06}-{name}.npz")
            if paths[-1].name not in leftover:
                _encode_part(paths[-1], part, hashes, literal)
            bar.update(sum(map(len, data)))
        bar.total = bar.n
    reused = sum(path.name in leftover for path in paths)
    if reused:
        print(f"went on from {reused} of {len(paths)} parts that an earlier run had finished")
    elif leftover:
        print("started over: what an earlier run had begun was of other text or another tokenizer")
    return paths


def _parts(documents: Iterable[str]) -> Iterator[list[str]]:
    part, size = [], 0
    for document in documents:
        part.append(document)
        size += len(document)
        if size >= PART:
            yield part
            part, size = [], 0
    if part:
        yield part


def _encode_part(path: Path, documents: Sequence[str], hashes: Sequence[bytes], tokenizer: Tokenizer) -> None:
    ids, kind = special_ids(tokenizer), token_type(tokenizer.get_vocab_size())
    # A unigram model reads "<mask>" of a text as that token all the same: what says nothing is left out.
    reserved = [ids[role] for role in ("pad", "cls", "sep", "mask")]
    texts = [(number, piece) for number, document in enumerate(documents) for piece in pieces(document)]
    tokens: list[list[NDArray[np.unsignedinteger]]] = [[] for _ in documents]
    for start in range(0, len(texts), BATCH):
        numbers, batch = zip(*texts[start : start + BATCH], strict=True)
        for number, encoding in zip(numbers, tokenizer.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            array = np.array(encoding.ids, kind)
            tokens[number].append(array[~np.isin(array, reserved)])
    lengths = np.array([sum(map(len, arrays)) for arrays in tokens])
    end = np.array([ids["sep"]], kind)
    joined = [array for arrays, n in zip(tokens, lengths, strict=True) if n for array in (*arrays, end)]
    stream = np.concatenate([np.zeros(0, kind), *joined])
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            tokens=stream,
            ends=np.cumsum(lengths[lengths > 0] + 1, dtype=np.int64),
            hashes=np.frombuffer(b"".join(digest[:8] for digest in hashes), "<u8")[lengths > 0],
            words=sum(len(text.split()) for _, text in texts),
            unknown=np.count_nonzero(stream == ids["unk"]) if "unk" in ids else 0,
        )


def _join(parts: Sequence[Path], out: Path, fraction: float) -> dict[str, Any]:
    """Write the documents of the parts in their order, each into its split."""
    found, words, unknown = [np.zeros(0, np.uint64)], 0, 0
    for path in parts:
        with np.load(path) as part:
            found.append(part["hashes"])
            words, unknown = words + int(part["words"]), unknown + int(part["unknown"])
    hashes = np.concatenate(found)
    if len(hashes) < 2:
        raise InputError(f"the text makes {len(hashes)} document(s): one to train on and one to hold out are needed")
    outside = held_out(hashes, fraction)
    counts = [
        _write_split(parts, chosen, out / PARTS / split)
        for split, chosen in zip(SPLITS, (~outside, outside), strict=True)
    ]
    for split in SPLITS:
        for kind in ("bin", "ends"):  # from among the parts only now, so that those of a killed run are written over
            (out / PARTS / f"{split}.{kind}").replace(out / f"{split}.{kind}")
    return {**dict(zip(SPLITS, counts, strict=True)), "words": words, "unknown": unknown}


def _write_split(parts: Sequence[Path], chosen: NDArray[np.bool_], path: Path) -> dict[str, int]:
    first, count = 0, 0
    with path.with_suffix(".bin").open("wb") as tokens, path.with_suffix(".ends").open("wb") as ends:
        for file in parts:
            with np.load(file) as part:
                lengths = np.diff(part["ends"], prepend=0)
                mine = chosen[first : first + len(lengths)]
                tokens.write(part["tokens"][np.repeat(mine, lengths)].tobytes())
            ends.write((count + np.cumsum(lengths[mine], dtype=np.int64)).tobytes())
            first, count = first + len(lengths), count + int(lengths[mine].sum())
        for written in (tokens, ends):
            written.flush()
            os.fsync(written.fileno())
    return {"tokens": count, "documents": int(chosen.sum())}
