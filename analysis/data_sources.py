"""The data that a person can name on the command line, as batches for a model."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bamboo.errors import InputError, unknown

from .model_sources import Opened

Kind = Literal["images", "texts"]
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TEXTS = {".txt", ".text", ".md", ".rst"}
CHARACTERS = 8  # per token, at most: enough text to fill a sequence of nearly any language


def open_data(
    data: str,
    opened: Opened,
    samples: int,
    batch_size: int = 32,
    max_length: int = 128,
    num_workers: int = 0,
    by_line: bool = False,
) -> Iterable[Any]:
    """Batches of `data` that fit a model: at most `samples`, evenly spread over all there are.

    For images: `digits`, or a folder; of `train/` and `val/` (as in ImageNet) the validation images are read, of any
    other folder all. For texts: a text file, a folder of them, or a corpus that `bamboo tokenize` wrote, of which the
    held-out part is read.

    Args:
        data: what a person typed.
        opened: the model.
        samples: number of images, or of pieces of text.
        batch_size: samples at a time.
        max_length: tokens of a piece of text.
        num_workers: processes that read images.
        by_line: each line of a text file is a piece of its own, such as a sentence; empty lines are left out.

    Raises:
        InputError: where there is no such data, or it is not of the kind that the model reads.
    """
    check_data(data)
    wanted: Kind = "images" if opened.size else "texts"
    if not _holds(data, wanted):
        raise InputError(f"{opened.label} reads {wanted}, and {data} holds none")
    if by_line and (opened.size or _is_corpus(Path(data))):
        raise InputError(f"--by-line reads the lines of text files, and {data} holds none")
    if opened.size:
        return _images(data, opened, samples, batch_size, num_workers)
    if _is_corpus(Path(data)):
        return _blocks(data, opened, samples, batch_size, max_length)
    return _texts(data, opened, samples, batch_size, max_length, by_line)


def check_data(data: str) -> None:
    """Raises `InputError` where there are no data of this name, or neither images nor texts in them."""
    if data == "digits":
        return
    if not Path(data).expanduser().exists():
        raise unknown("data", data, ["digits"]) if "/" not in data else InputError(f"{data} is missing: give a folder")
    if not _holds(data, "images") and not _holds(data, "texts"):
        endings = ", ".join(sorted(IMAGES | TEXTS))
        raise InputError(f"{data} holds neither images nor texts: files ending in {endings} are read")


def _holds(data: str, kind: Kind) -> bool:
    """Whether there is an image, or a text: a single file that is no image is taken for one, whatever its ending."""
    path = Path(data).expanduser()
    if data == "digits":
        return kind == "images"
    if path.is_file() and kind == "texts":
        return path.suffix.lower() not in IMAGES
    if _is_corpus(path):
        return kind == "texts"
    return any(file.suffix.lower() in (IMAGES if kind == "images" else TEXTS) for file in _files(path))


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all in a folder and below it, by name."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _images(data: str, opened: Opened, samples: int, batch_size: int, num_workers: int) -> Iterable[Any]:
    from bamboo.vision.data import Digits, ImageData, ImageFolder
    from bamboo.vision.folders import all_images

    assert opened.size is not None
    options: dict[str, Any] = {"image_size": opened.size, "in_chans": opened.in_chans, "batch_size": batch_size}
    module: ImageData
    if data == "digits":
        module = Digits(**options, num_workers=num_workers)
    else:
        module = ImageFolder(data, **options, num_workers=num_workers)
    path = Path(data).expanduser()
    split = data == "digits" or (path / "train").is_dir()
    return module.probe_loader(module.sources.val if split else all_images(path, opened.in_chans, ()), samples)


def _check_length(max_length: int, opened: Opened) -> None:
    from bamboo.text.encoder import longest_sequence

    model: Any = opened.model
    limit = longest_sequence(model.config)
    if not 2 < max_length <= limit:
        raise InputError(f"max_length must lie between 3 and the {limit} tokens of {opened.label}, got {max_length}")


def _texts(
    data: str, opened: Opened, samples: int, batch_size: int, max_length: int, by_line: bool
) -> Iterator[Mapping[str, Tensor]]:
    _check_length(max_length, opened)
    path = Path(data).expanduser()
    pieces = iter(_lines(path, samples) if by_line else _pieces(path, samples, CHARACTERS * max_length))
    while batch := list(islice(pieces, batch_size)):
        yield opened.tokenizer(
            batch,
            truncation=True,
            max_length=max_length,
            padding=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )


def _is_corpus(path: Path) -> bool:
    return (path.expanduser() / "corpus.json").is_file()


def _blocks(
    data: str, opened: Opened, samples: int, batch_size: int, max_length: int
) -> Iterator[Mapping[str, Tensor]]:
    """Held-out blocks of a packed corpus, evenly spread over it."""
    from bamboo.text.data import PackedCorpus

    _check_length(max_length, opened)
    module = PackedCorpus(root=data, block_length=max_length, batch_size=batch_size)
    if module.tokenizer.get_vocab() != opened.tokenizer.get_vocab():
        raise InputError(f"{data} was made with another tokenizer than that of {opened.label}: give it as text files")
    module.setup()
    blocks = module.blocks(module.text.val, samples)
    for start in range(0, len(blocks), batch_size):
        yield module.collate_fn()([blocks[i] for i in range(start, min(start + batch_size, len(blocks)))])


def _pieces(path: Path, count: int, size: int) -> Sequence[str]:
    """Up to `count` pieces of text of about `size` characters, evenly spread, each from the start of a word."""
    text = _read_all(path)
    starts = [place * size for place in _spread(count, max(len(text) // size, 1))]
    return [_from_word(text[start : start + size], start > 0) for start in starts]


def _lines(path: Path, count: int) -> Sequence[str]:
    """Up to `count` lines that are not empty, evenly spread."""
    lines = [line for line in _read_all(path).splitlines() if line.strip()]
    return [lines[place] for place in _spread(count, len(lines))]


def _read_all(path: Path) -> str:
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in _files(path) if _is_text(file, path)]
    text = "\n".join(texts)
    if not text.strip():
        raise InputError(f"{path} holds no text")
    return text


def _spread(count: int, available: int) -> list[int]:
    """`count` numbers below `available`, evenly spread; all of them where there are fewer."""
    count = min(count, available)
    return [place * available // count for place in range(count)]


def _is_text(file: Path, path: Path) -> bool:
    return file == path or file.suffix.lower() in TEXTS


def _from_word(piece: str, inside: bool) -> str:
    return piece.split(" ", 1)[-1] if inside else piece
