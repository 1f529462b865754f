"""Tables of finished runs, one row each, from CSV files and from the folders of `bamboo fit` and `bamboo study`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bamboo.errors import InputError

TOLERANCE = 0.05
REQUIRED = ("parameters", "data", "loss")
NUMBERS = (*REQUIRED, "batch_size", "learning_rate", "tokens_per_sample", "compute")
COLUMNS = ("name", *NUMBERS, "seed")


def read_runs(paths: Iterable[str | Path], loss: str = "val/loss") -> tuple[pd.DataFrame, list[str]]:
    """Runs as `check_runs` gives them, and a line for each failed or unfinished run that was left out.

    Args:
        paths: CSV files with the columns that `check_runs` takes, or folders with runs of `bamboo fit` or studies
            anywhere below them.
        loss: name under which `bamboo fit` logged the loss; its last value counts.

    Raises:
        InputError: naming the file, line and column, or the folder, that cannot be used.
    """
    tables: list[pd.DataFrame] = []
    skipped: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            from .folders import read_folder  # seconds, for torch and Lightning

            rows, left_out = read_folder(path, loss)
            tables += [check_runs(pd.DataFrame(rows, index=[row["name"] for row in rows]))] if rows else []
            skipped += left_out
        elif path.is_file():
            tables.append(_read_csv(path))
        else:
            raise InputError(f"{path} is missing: give CSV files or folders of runs")
    if not tables:
        raise InputError("no finished run was found" + (f": {skipped[0]}" if skipped else ""))
    return pd.concat(tables, ignore_index=True), skipped


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except (UnicodeDecodeError, pd.errors.ParserError) as error:
        reason = str(error).split("C error: ")[-1].strip()
        raise InputError(f"{path} is no CSV file with {', '.join(REQUIRED)}: {reason}") from error
    table.columns = table.columns.astype(str).str.strip()
    table.index = pd.Index([f"line {number + 2}" for number in range(len(table))])
    try:
        runs = check_runs(table[(table != "").any(axis=1)])
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    if runs.empty:
        raise InputError(f"{path} holds no runs: give one line for each")
    return runs.assign(name=runs["name"].where(runs["name"] != runs.index, f"{path} " + runs["name"]))


def check_runs(table: pd.DataFrame) -> pd.DataFrame:
    """A table of runs with all its columns, as numbers.

    Args:
        table: a row for each run, whose index names it. Columns are `parameters` (N), `data` or `samples` or `tokens`
            (D, seen in training, all epochs counted), `loss` (at the end, on held-out data), and if known `batch_size`
            (in the unit of the data), `learning_rate` (peak of the schedule), `tokens_per_sample` (that the N
            parameters see of each unit of D; 1 where D counts tokens), `compute` (FLOPs of training; 6 N D
            tokens_per_sample where it is left out), `seed` and `name`. Empty texts are as good as absent.

    Raises:
        InputError: naming row and column of what is missing or no positive, finite number.
    """
    alias = next((column for column in ("data", "samples", "tokens") if column in table), "data")
    table = table.rename(columns={alias: "data"})
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise InputError(f"lacks the columns {', '.join(missing)}: it has {', '.join(table) or 'none'}")
    runs = table.reindex(columns=[*COLUMNS])
    for column in NUMBERS:
        blank = runs[column].isna() | (runs[column] == "")
        numbers = pd.to_numeric(runs[column].mask(blank), errors="coerce").astype(np.float64)
        wrong = ~((numbers > 0) & np.isfinite(numbers)) & (~blank if column not in REQUIRED else True)
        if wrong.any():
            entry = repr(runs[column].iloc[wrong.argmax()])
            where = f"{runs.index[wrong.argmax()]}: {alias if column == 'data' else column}"
            raise InputError(f"{where} must be a positive, finite number, got {entry}")
        runs[column] = numbers
    runs["tokens_per_sample"] = runs["tokens_per_sample"].fillna(1)
    runs["compute"] = runs["compute"].fillna(6 * runs["parameters"] * runs["data"] * runs["tokens_per_sample"])
    runs["name"] = runs["name"].mask(runs["name"] == "").fillna(runs.index.to_series())
    return runs


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each N and D, the runs with the batch size and learning rate of the lowest loss, all seeds of them."""
    cell = cells(runs)
    setting = runs.groupby([cell, "batch_size", "learning_rate"], dropna=False).ngroup()
    best = np.log(runs["loss"]).groupby(setting).transform("mean").groupby(cell).idxmin()
    return runs[setting.isin(setting[best])]


def cells(runs: pd.DataFrame) -> pd.Series:
    """(runs,) number of the pair of N and D of each, by N, then by D."""
    return runs.groupby(["parameters", runs.groupby("parameters")["data"].transform(near)]).ngroup()


def near(values: pd.Series) -> pd.Series:
    """Number of the group of each value, by rising value; a gap of more than 5 % parts two groups.

    A whole number of steps is some samples off the amount of data that was asked for.
    """
    return (np.log(values.sort_values()).diff() > np.log1p(TOLERANCE)).cumsum().reindex(values.index)
