"""`bamboo tokenize`: from text to a packed corpus."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bamboo.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bamboo.text.corpus import Corpus

VOCAB_SIZE = 30522
"""BERT's."""
VOCAB_SAMPLE = 32
"""MiB."""
NO_TEXT = {".parquet", ".arrow", ".gz", ".zst"}
"""Endings of files whose size is not that of their text."""


def tokenize(
    text: list[str],
    *,
    out: Path,
    vocab_size: int | None = None,
    tokenizer: str | None = None,
    field: str = "text",
    val_fraction: float = 0.05,
    cased: bool = False,
    vocab_sample: int = VOCAB_SAMPLE,
    workers: int = 0,
    seed: int = 0,
) -> None:
    """Turn text into a packed corpus; run again after a crash, it goes on where it was.

    Args:
        text: text files (.txt, .text, .md, .rst) and JSON lines (.jsonl), as they are or compressed (.gz, .zst),
            Parquet or Arrow files, folders of them at any depth, data sets that `datasets.save_to_disk` wrote, and
            those of Hugging Face's hub, streamed: `hf:NAME`, and behind it if need be `,config=` and `,split=`. Long
            texts are cut at blank lines into documents of about 3,000 words.
        out: folder for the corpus.
        vocab_size: tokens of the WordPiece vocabulary that is trained on the text; 30522, as BERT's, by default.
        tokenizer: take this one instead: a tokenizer.json, a vocab.txt, or a folder that `AutoTokenizer` reads.
        field: name of the text in JSON lines and tables.
        val_fraction: share of the documents that is held out.
        cased: keep upper case and accents.
        vocab_sample: MiB of text that the vocabulary is trained on, at most, drawn evenly over all of it.
        workers: threads; 0 for one on each core. The files are the same for any number.
        seed: of the choice of documents that are held out.

    Raises:
        InputError: where the text, the tokenizer or the folder cannot be used, in one line.
    """
    from bamboo.text.corpus import Corpus
    from bamboo.text.documents import find_sources, read_documents
    from bamboo.text.packing import write_corpus
    from bamboo.text.tokenizer import load_tokenizer

    if tokenizer is not None and vocab_size is not None:
        raise InputError("--tokenizer brings its own vocabulary: leave --vocab-size out, or --tokenizer")
    if workers < 0:
        raise InputError(f"workers must be 0, for one on each core, or more, got {workers}")
    if vocab_sample < 1:
        raise InputError(f"vocab_sample must be at least 1 MiB, got {vocab_sample}")
    if not 0 < val_fraction <= 0.5:
        raise InputError(f"val_fraction must be above 0 and at most 0.5, got {val_fraction}")
    if workers:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    sources = find_sources(text)
    files = [source for source in sources if isinstance(source, Path)]
    size, total = vocab_size or VOCAB_SIZE, sum(file.stat().st_size for file in files)
    split: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed}
    named = [name if name.startswith("hf:") else str(Path(name)) for name in map(str, text)]
    made_from = {"sources": named, "files": len(files), "bytes": total, "field": field}
    made_from |= {"cased": cased, "tokenizer": tokenizer, "vocab_size": None if tokenizer else size, **split}
    if vocab_sample != VOCAB_SAMPLE:
        made_from["vocab_sample"] = vocab_sample
    if (out / "corpus.json").exists():
        corpus = Corpus.open(out)
        if corpus.metadata["made_from"] != made_from:
            raise InputError(f"{out} holds a corpus of other text or options: name another --out, or delete it")
        print(f"{out} was finished before")
    else:
        if tokenizer:
            used = load_tokenizer(tokenizer, cased)
        else:
            used = _train(read_documents(sources, field), size, cased, vocab_sample << 20)
        is_text = len(files) == len(sources) and not {file.suffix for file in files} & NO_TEXT
        options = {**split, "total": total if is_text else None, "made_from": made_from}
        corpus = write_corpus(read_documents(sources, field), used, out, **options)
    print(_summary(corpus, out))


def _train(texts: Iterator[str], vocab_size: int, cased: bool, sample_bytes: int) -> "Tokenizer":
    from tqdm import tqdm

    from bamboo.text.wordpiece import train_wordpiece

    with tqdm(texts, desc="vocabulary", unit=" documents", mininterval=1) as documents:
        tokenizer = train_wordpiece(documents, vocab_size, not cased, sample_bytes)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        print(f"vocabulary: {size:,} tokens of the {vocab_size:,} asked for; the text has no more that occur twice")
    return tokenizer


def _summary(corpus: "Corpus", out: Path) -> str:
    from bamboo.text.tokenizer import special_ids

    size, pad = corpus.tokenizer.get_vocab_size(), special_ids(corpus.tokenizer)["pad"]
    counts = corpus.metadata
    tokens = sum(counts[split]["tokens"] - counts[split]["documents"] for split in ("train", "val"))
    options = f"--data.init_args.root {out} --model.init_args.vocab_size {size}"
    options += f" --model.init_args.pad_token_id {pad}" if pad else ""
    return (
        f"train: {counts['train']['tokens']:,} tokens of {counts['train']['documents']:,} documents\n"
        f"val:   {counts['val']['tokens']:,} tokens of {counts['val']['documents']:,} documents\n"
        f"{tokens / max(counts['words'], 1):.3f} tokens per word, {counts['unknown'] / tokens:.3%} [UNK], "
        f"vocabulary of {size:,}\n"
        f"wrote {out}\n"
        f"next: bamboo fit --config pretrain/text_one_day {options}"
    )
