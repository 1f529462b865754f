"""`bamboo score`: what predictions are worth: accuracy, the confusion matrix, and accuracy by reassessed labels."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bamboo.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAMED = 30
"""Classes, at most, that a picture of a confusion matrix can name on its axes."""


def score(predictions: Path, *, out: Path, real: Path | None = None, top: int = 10) -> None:
    """Score the predictions that `bamboo predict` wrote, and write the confusion matrix as CSV and as a picture.

    Args:
        predictions: the CSV file.
        out: folder for confusion.csv, confusion.png and confusion.svg.
        real: real.json of the reassessed labels of ImageNet's validation images (Beyer et al. 2020): for each of them,
            by number, the classes that are right, none where nobody knows.
        top: confusions to print, the most frequent first.
    """
    from bamboo.analysis.plots import save_figure
    from bamboo.files import write_text
    from bamboo.tables import table

    rows = read_predictions(predictions)
    answers = [column for column in rows if column.startswith("predicted")]
    right = rows[answers].eq(rows["label"], axis=0)
    lines = [f"top-1 {right['predicted'].mean():.2%}"]
    if len(answers) > 1:
        lines.append(f"top-{len(answers)} {right.any(axis=1).mean():.2%}")
    classes = sorted_names(rows["label"])
    never = sorted_names({*classes} - {*rows[answers].to_numpy().ravel()})
    if never:
        lines.append(f"{len(never)} of {len(classes)} classes are never predicted: {', '.join(never[:3])}")
    if real:
        accuracy, count = real_accuracy(rows, real)
        lines.append(f"by reassessed labels {accuracy:.2%} of {count} images that have some")
    matrix = confusion(rows, sorted_names([*classes, *rows["predicted"]]))
    path = write_text(out / "confusion.csv", matrix.to_csv())
    paths = [path, *save_figure(_figure(matrix), out / "confusion")]
    print(f"{len(rows)} images of {len(classes)} classes: {', '.join(lines)}")
    mistakes = worst(matrix, top)
    if mistakes:
        print(table([("label", "predicted", "images", "of the label"), *mistakes]))
    print(*(f"wrote {path}" for path in paths), sep="\n")


def read_predictions(path: Path) -> "pd.DataFrame":
    """The rows of a file of predictions that have a label, names as text. Raises `InputError` where there are none."""
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := [column for column in ("file", "label", "predicted") if column not in rows]:
        raise InputError(f"{path} has no column {missing[0]!r}: give the file that bamboo predict writes")
    rows = rows[rows["label"] != ""]
    if (rows["predicted"] == "").any():
        raise InputError(f"{path}: the row of {rows['file'][rows['predicted'] == ''].iloc[0]!r} has no prediction")
    if rows.empty:
        raise InputError(f"{path} has no labels to score by")
    return rows.reset_index(drop=True)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Each name once, numbers by their value."""
    return sorted(set(names), key=lambda name: (int(name) if name.isdecimal() else math.inf, name))


def confusion(rows: "pd.DataFrame", classes: Sequence[str]) -> "pd.DataFrame":
    """How many images of each label, a row each, were taken for each class."""
    import pandas as pd

    matrix = pd.crosstab(rows["label"], rows["predicted"]).reindex(index=classes, columns=classes, fill_value=0)
    return matrix.rename_axis(index="label", columns=None)


def worst(matrix: "pd.DataFrame", top: int) -> list[tuple[str, ...]]:
    """Label, predicted class, number of images and share of the label, for the most frequent mistakes."""
    import numpy as np

    counts = matrix.to_numpy(copy=True)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    mistakes: list[tuple[str, ...]] = []
    for place in np.argsort(-counts, axis=None, kind="stable")[:top]:
        label, predicted = divmod(int(place), len(matrix))
        if count := int(counts[label, predicted]):
            names = str(matrix.index[label]), str(matrix.columns[predicted])
            mistakes.append((*names, str(count), f"{count / totals[label]:.1%}"))
    return mistakes


def real_accuracy(rows: "pd.DataFrame", path: Path) -> tuple[float, int]:
    """Share of images whose predicted class is one of the reassessed labels, and how many have such labels.

    An image is found by the number at the end of its name, counted from 1, and a class by its place in the sorted names
    of all classes.

    Raises:
        InputError: where the file does not fit the predictions.
    """
    from bamboo.files import read_json

    labels, classes = read_json(path), sorted_names(rows["label"])
    if not all(re.fullmatch(r"n\d{8}|\d+", name) for name in classes):
        raise InputError(
            f"{path} numbers ImageNet's classes, and {classes[0]!r} is neither n and eight digits nor a number"
        )
    entries = [number for each in labels for number in each] if _is_lists(labels) else [-1]
    if not all(type(number) is int and 0 <= number < len(classes) for number in entries):
        raise InputError(f"{path} is no list of classes below {len(classes)}, which the predictions have, by image")
    right = []
    for file, predicted in zip(rows["file"], rows["predicted"], strict=True):
        number = re.search(r"(\d+)\.\w+$", file)
        if number is None or not 0 < int(number[1]) <= len(labels):
            raise InputError(f"{file}: its name does not end in the number of one of {len(labels)} images")
        if names := [classes[place] for place in labels[int(number[1]) - 1]]:
            right.append(predicted in names)
    if not right:
        raise InputError(f"{path} has no label for any of these images")
    return sum(right) / len(right), len(right)


def _is_lists(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(each, list) for each in labels)


def _figure(matrix: "pd.DataFrame") -> "Figure":
    from matplotlib.figure import Figure

    from bamboo.analysis.plots import style

    shares = matrix.div(matrix.sum(axis=1).clip(lower=1), axis=0)
    with style():
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axis = figure.subplots()
        picture = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axis.set(title="share of a label", xlabel="predicted", ylabel="label")
        if len(matrix) <= NAMED:
            axis.set_xticks(range(len(matrix)), matrix.columns, rotation=90)
            axis.set_yticks(range(len(matrix)), matrix.index)
        axis.grid(visible=False)
        figure.colorbar(picture)
    return figure
