"""The data that a person can name on the command line, as batches for a model."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from bamboo.errors import InputError, unknown
from bamboo.processes import world_and_rank
from bamboo.sampling import evenly_spread
from bamboo.vision.images import EXTENSIONS
from bamboo.vision.sources import locate

from .model_sources import Opened

Kind = Literal["images", "texts"]
ENDINGS: dict[Kind, set[str]] = {
    "images": {*EXTENSIONS},
    "texts": {".txt", ".text", ".md", ".rst"},
}
CHARACTERS = 8  # per token, at most: enough text to fill a sequence of nearly any language


def open_data(
    data: str,
    opened: Opened,
    samples: int,
    batch_size: int = 32,
    max_length: int = 128,
    num_workers: int = 0,
    by_line: bool = False,
    shared: bool = False,
) -> Iterable[Any]:
    """Batches of `data` that fit a model: at most `samples`, evenly spread over all there are.

    With `shared` each of several processes gets its share of them, else all of them.

    For images: `digits`, or a SOURCE (see `bamboo.vision.sources`), of which the validation images are read, of a
    folder without `train/` all. For texts: a text file, a folder of them, or a corpus that `bamboo tokenize` wrote, of
    which the held-out part is read. A piece of text has up to `max_length` tokens, or with `by_line` is a line that is
    not empty.

    Raises:
        InputError: where there is no such data, or it is not of the kind that the model reads.
    """
    check_data(data)
    wanted: Kind = "images" if opened.size else "texts"
    if not _holds(data, wanted):
        raise InputError(f"{opened.label} reads {wanted}, and {data} holds none")
    path = _path(data)
    if by_line and (opened.size or _is_corpus(path)):
        raise InputError(f"--by-line reads the lines of text files, and {data} holds none")
    if opened.size:
        return _images(data, opened, samples, batch_size, num_workers, shared)
    _check_length(max_length, opened)
    if _is_corpus(path):
        return _blocks(path, opened, samples, batch_size, max_length, shared)
    texts = (_lines if by_line else _pieces)(path, samples, max_length)
    world, rank = world_and_rank() if shared else (1, 0)
    return _tokenised(texts[rank::world], opened, batch_size, max_length)


def check_data(data: str) -> None:
    """Raises `InputError` where there are no data of this name, or neither images nor texts in them."""
    if _is_named(data):
        return
    path = _path(data)
    if not path.exists():
        raise unknown("data", data, ["digits"]) if "/" not in data else InputError(f"{data} is missing: give a folder")
    if not _holds(data, "images") and not _holds(data, "texts"):
        endings = ", ".join(sorted(ENDINGS["images"] | ENDINGS["texts"]))
        raise InputError(f"{data} holds neither images nor texts: files ending in {endings} are read")


def _is_named(data: str) -> bool:
    """Whether it is no place on the disk but the name of a data set of images."""
    return data == "digits" or data.startswith(("hf:", "torchvision:"))


def _path(data: str) -> Path:
    return Path(locate(data)[1]).expanduser()


def _holds(data: str, kind: Kind) -> bool:
    """Whether there is an image, or a text: a single file that is no image is taken for one, whatever its ending."""
    if data == "digits" or locate(data)[0] != "folder":
        return kind == "images"
    path = _path(data)
    if _is_corpus(path):
        return kind == "texts"
    if path.is_file():
        return (path.suffix.lower() in ENDINGS["images"]) == (kind == "images")
    return any(file.suffix.lower() in ENDINGS[kind] for file in path.rglob("*"))


def _is_corpus(path: Path) -> bool:
    return (path / "corpus.json").is_file()


def _images(data: str, opened: Opened, samples: int, batch_size: int, num_workers: int, shared: bool) -> Iterable[Any]:
    from bamboo.vision.data import image_data
    from bamboo.vision.sources import all_images

    assert opened.size is not None
    shape: dict[str, Any] = {"image_size": opened.size, "in_chans": opened.in_chans}
    module = image_data(data, batch_size=batch_size, num_workers=num_workers, **shape)
    whole = data != "digits" and locate(data)[0] == "folder" and not (_path(data) / "train").is_dir()
    source = all_images(data, opened.in_chans, ()) if whole else module.sources.val
    return module.probe_loader(source, samples, shared)


def _check_length(max_length: int, opened: Opened) -> None:
    from bamboo.text.encoder import longest_sequence

    model: Any = opened.model
    limit = longest_sequence(model.config)
    if not 2 < max_length <= limit:
        raise InputError(f"max_length must lie between 3 and the {limit} tokens of {opened.label}, got {max_length}")


Texts = Iterator[Mapping[str, Tensor]]


def _blocks(path: Path, opened: Opened, samples: int, batch_size: int, max_length: int, shared: bool) -> Texts:
    """Held-out blocks of a packed corpus, evenly spread over it."""
    from bamboo.text.data import PackedCorpus

    module = PackedCorpus(root=str(path), block_length=max_length, batch_size=batch_size, val_blocks=samples)
    if module.tokenizer.get_vocab() != opened.tokenizer.get_vocab():
        raise InputError(f"{path} was made with another tokenizer than that of {opened.label}: give it as text files")
    module.setup()
    yield from module.val_dataloader()  # which deals its blocks to the processes


def _pieces(path: Path, samples: int, max_length: int) -> list[str]:
    """Pieces of text of about `max_length` tokens, evenly spread, each from the start of a word."""
    text, size = _read_all(path), CHARACTERS * max_length
    starts = [place * size for place in evenly_spread(max(len(text) // size, 1), samples)]
    pieces = (text[start : start + size] for start in starts)
    return [piece.split(" ", 1)[-1] if start else piece for piece, start in zip(pieces, starts, strict=True)]


def _lines(path: Path, samples: int, max_length: int) -> list[str]:
    """Lines that are not empty, evenly spread, however long."""
    lines = [line for line in _read_all(path).splitlines() if line.strip()]
    return [lines[place] for place in evenly_spread(len(lines), samples)]


def _tokenised(texts: Iterable[str], opened: Opened, batch_size: int, max_length: int) -> Texts:
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    remaining = iter(texts)
    while batch := list(islice(remaining, batch_size)):
        yield opened.tokenizer(batch, return_special_tokens_mask=True, **options)


def _read_all(path: Path) -> str:
    """The text of a file, or of all text files in a folder and below it, by name."""
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS["texts"])
    )
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    if not text.strip():
        raise InputError(f"{path} holds no text")
    return text
