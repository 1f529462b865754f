"""Images of Hugging Face data sets: of the hub, of Parquet files, or as `save_to_disk` wrote them.

`datasets` turns the first two into Arrow files in its cache, once, which takes as much disk as the images; from there
any row is read at once, without being decoded.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bamboo.errors import InputError
from bamboo.vision.images import Encoded, Indices, Unreadable, digest, file_stamps, read_bytes

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_NAMES = ("image", "img", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "cls", "class")
"""What columns are called that no feature tells to be images or classes."""


@dataclass(eq=False)
class Rows(Encoded):
    """Rows of Arrow files; `title` is what to call their data set in a message, `places` are numbers of rows."""

    title: str
    files: tuple[str, ...]
    column: str
    places: NDArray[np.int64]
    labels: NDArray[np.int64]
    in_chans: int
    classes: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """The data set and the number of the row."""
        return f"{self.title}, row {self.places[index]}"

    def encoded(self, index: int) -> NDArray[np.uint8]:
        """What the column holds: bytes, or the path of a file."""
        value = self._table[int(self.places[index])].column(self.column)[0]
        path = ""
        if hasattr(value, "keys"):  # a struct of bytes and path, as `datasets` keeps images
            value, path = value["bytes"], value["path"].as_py() if "path" in value else ""
        if value.is_valid:
            return np.frombuffer(value.as_buffer(), np.uint8).copy()  # torch wants memory that can be written
        if not path:
            raise Unreadable(f"{self.name(index)} holds no image")
        return read_bytes(path)

    def subset(self, indices: Indices) -> "Rows":
        """Some of the rows."""
        return replace(self, places=self.places[indices], labels=self.labels[indices])

    def stamp(self) -> bytes:
        """By sizes and times of the files, which rows of them these are, and their labels."""
        return digest(file_stamps(self.files), self.column, self.places, self.labels, self.classes, self.in_chans)

    @cached_property
    def _table(self) -> "Dataset":
        """The files, mapped into memory when a process first reads of them."""
        from datasets import Dataset, concatenate_datasets

        try:
            tables = [Dataset.from_file(file) for file in self.files]
        except OSError as error:
            raise InputError(f"{self.title}: {error.filename} is missing: the cache must be seen everywhere") from error
        return concatenate_datasets(tables).with_format("arrow")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_table"}  # other processes map it themselves


def hub_splits(name: str, config: str | None) -> Mapping[str, "Dataset"]:
    """All splits of a data set of the hub. Raises `InputError` where it is not there or cannot be reached."""
    datasets = _library()
    try:
        splits: Mapping[str, Dataset] = datasets.load_dataset(name, config)
    except Exception as error:  # absent, gated, offline, several configurations: each in its own way
        raise InputError(f"hf:{name} cannot be read: {_first_line(error)}") from error
    return splits


def parquet_splits(root: Path, files: Mapping[str, Sequence[Path]]) -> Mapping[str, "Dataset"]:
    """Parquet files by split, as data sets. Raises `InputError` where one cannot be read."""
    datasets = _library()
    for path in (path for paths in files.values() for path in paths):
        _check_parquet(path)
    names = {split: [os.fspath(path) for path in paths] for split, paths in files.items()}
    try:
        splits: Mapping[str, Dataset] = datasets.load_dataset("parquet", data_files=names)
    except Exception as error:  # of pyarrow, datasets and the disk
        raise InputError(
            f"{root}: its Parquet files cannot be read: {_first_line(error.__cause__ or error)}"
        ) from error
    return splits


def saved_splits(root: Path) -> Mapping[str, "Dataset"]:
    """What `save_to_disk` wrote. Raises `InputError` where it cannot be read."""
    datasets = _library()
    try:
        saved = datasets.load_from_disk(os.fspath(root))
    except Exception as error:  # of pyarrow, datasets and the disk
        raise InputError(f"{root}: this saved data set cannot be read: {_first_line(error)}") from error
    return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def rows(dataset: "Dataset", title: str, in_chans: int, image: str | None = None, label: str | None = None) -> Rows:
    """The images of a data set, with their labels if there are any.

    Args:
        dataset: of `datasets`, in files.
        title: what to call it in a message.
        in_chans: channels to read.
        image: the column of images; by default the one with that feature, or that is called so.
        label: the column of classes; by default the one with that feature, or that is called so.

    Raises:
        InputError: where a column is missing, or several may be meant, or there are no rows.
    """
    from datasets import ClassLabel, Image

    if not len(dataset):
        raise InputError(f"{title} has no rows")
    column = _column(dataset, title, image, "image", Image, IMAGE_NAMES)
    if column is None:
        raise InputError(f"{title} has no column of images: its columns are {', '.join(dataset.column_names)}")
    chosen = _column(dataset, title, label, "label", ClassLabel, LABEL_NAMES)
    labels, classes = _labels(dataset, title, chosen) if chosen else (np.full(len(dataset), -1, np.int64), ())
    files = tuple(file["filename"] for file in dataset.cache_files)
    return Rows(title, files, column, np.arange(len(dataset)), labels, in_chans, classes)


def _column(
    dataset: "Dataset", title: str, chosen: str | None, role: str, feature: type, names: Sequence[str]
) -> str | None:
    """The column that is named, or else the only one with this feature, or else the first one that is called so."""
    if chosen is not None:
        if chosen not in dataset.column_names:
            raise InputError(f"{title} has no column {chosen!r}: its columns are {', '.join(dataset.column_names)}")
        return chosen
    with_feature = [name for name, kind in dataset.features.items() if isinstance(kind, feature)]
    if len(with_feature) > 1:
        some = ", ".join(with_feature)
        raise InputError(f"{title} has several columns of the kind {role}, {some}: add ,{role}={with_feature[0]}")
    return next(iter(with_feature), next((name for name in names if name in dataset.column_names), None))


def _labels(dataset: "Dataset", title: str, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Numbers of the classes, and their names where the data set has them."""
    values = dataset.data.column(column)
    if values.null_count:
        raise InputError(f"{title}: column {column!r} has no value in {values.null_count} of {len(values)} rows")
    labels = values.to_numpy()
    if labels.dtype.kind in "iu":
        if labels.min() < -1:
            raise InputError(f"{title}: column {column!r} holds {labels.min()}, which is no class")
        return labels.astype(np.int64), tuple(getattr(dataset.features[column], "names", None) or ())
    if not isinstance(labels[0], str):
        raise InputError(f"{title}: column {column!r} holds neither numbers nor names of classes")
    classes, numbers = np.unique(labels.astype(np.str_), return_inverse=True)
    return numbers.astype(np.int64), tuple(map(str, classes))


def _check_parquet(path: Path) -> None:
    """A Parquet file that is cut short cannot be read at all, for what says where its rows are comes last."""
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        parquet.read_metadata(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no Parquet file: {_first_line(error)}") from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError("Hugging Face data sets need a package more: pip install 'bamboo-mae[text]'") from error
    return datasets


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
