"""Where a split of a task is, in every layout in which people have GLUE on their disks."""

import re
from pathlib import Path

from bamboo.errors import InputError

from .tables import Table, read_hub, read_json_lines, read_parquet, read_saved
from .tasks import Task, plain
from .tsv import read_tsv


def find_tables(task: Task, data: str | Path, split: str) -> list[Table]:
    """Read the file or files of one split.

    Args:
        task: of GLUE.
        data: the folder that holds a folder for each task, or the folder of this task, or the name of a data set on
            the Hugging Face hub.
        split: a key of `task.rows`.

    Raises:
        InputError: where there is no such file, or it cannot be read.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        if root.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(data)):
            raise InputError(f"{data} is no folder: give the folder of the GLUE download, with {task.folder}/ in it")
        return [read_hub(str(data), task.name, _hub_split(split), _hub_names(task, split))]
    folder = _task_folder(task, root)
    for layout in (_official, _cola_release, _mrpc_release, _parquet, _json_lines, _saved):
        if tables := layout(task, folder, split):
            return tables
    tsv = f"{split}.tsv" if "train" in task.rows else f"{task.folder}.tsv"
    hub = _hub_split(split)
    looked = f"looked for {tsv}, {hub}-*.parquet, {hub}.jsonl and a data set saved as {hub}/"
    raise InputError(f"{folder}: no {task.title} {split} data there: {looked}")


def _task_folder(task: Task, root: Path) -> Path:
    names = {task.name, plain(task.folder)}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and plain(path.name) in names)
    if folders:
        return folders[0]
    if plain(root.resolve().name) in names:
        return root
    raise InputError(f"{root}: no folder {task.folder}/ or {task.name}/ there, which holds the data of {task.title}")


def _hub_split(split: str) -> str:
    return split.replace("dev", "validation")


def _hub_names(task: Task, split: str) -> dict[str, str]:
    return _names((*task.texts, "label"), split)


def _names(columns: tuple[str, ...], split: str) -> dict[str, str]:
    """Columns by what they are for; test sets have no labels, or none that tell anything."""
    *texts, label = columns
    names = dict(zip(("first", "second"), texts, strict=False))
    return names if split.startswith("test") else {**names, "label": label}


def _official(task: Task, folder: Path, split: str) -> list[Table]:
    stems = (split,) if "train" in task.rows else (task.folder, task.title)
    path = next((path for stem in stems if (path := folder / f"{stem}.tsv").is_file()), None)
    return [_read_official(task, path, split)] if path else []


def _read_official(task: Task, path: Path, split: str) -> Table:
    is_test = split.startswith("test")
    header = () if is_test else task.header
    return read_tsv(path, _names(task.columns, split), header, skip_short=task.ragged and not is_test)


def _cola_release(task: Task, folder: Path, split: str) -> list[Table]:
    """The files of CoLA's own release; GLUE's dev set is its in-domain and out-of-domain ones, in this order."""
    stems = {"train": ("in_domain_train",), "dev": ("in_domain_dev", "out_of_domain_dev")}.get(split, ())
    if task.name != "cola" or not stems:
        return []
    for place in (folder, folder / "raw", folder / "original" / "raw"):
        paths = [place / f"{stem}.tsv" for stem in stems]
        if all(path.is_file() for path in paths):
            return [_read_official(task, path, split) for path in paths]
    return []


def _mrpc_release(task: Task, folder: Path, split: str) -> list[Table]:
    """The text files of MRPC's own release, whose training part `dev_ids.tsv` divides into GLUE's train and dev."""
    path = folder / f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"
    if task.name != "mrpc" or not path.is_file():
        return []
    names = _names(task.columns, split)
    if split == "test":
        return [read_tsv(path, names)]
    ids = next((file for name in ("dev_ids.tsv", "mrpc_dev_ids.tsv") if (file := folder / name).is_file()), None)
    if ids is None:
        raise InputError(f"{folder}: no dev_ids.tsv there, which says what rows of {path.name} are the dev set")
    pair = {"one": "#1 ID", "two": "#2 ID"}
    table = read_tsv(path, {**names, **pair})
    dev = set(_pairs(read_tsv(ids, pair, header=tuple(pair.values()))))
    return [table.select([row for row, key in enumerate(_pairs(table)) if (key in dev) == (split == "dev")])]


def _pairs(table: Table) -> list[tuple[str, str]]:
    return list(zip(table.columns["one"], table.columns["two"], strict=True))


def _parquet(task: Task, folder: Path, split: str) -> list[Table]:
    for name in (_hub_split(split), split):
        for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
            if paths := sorted(folder.glob(pattern)):
                return [read_parquet(path, _hub_names(task, split)) for path in paths]
    return []


def _json_lines(task: Task, folder: Path, split: str) -> list[Table]:
    for name in (_hub_split(split), split):
        for suffix in (".jsonl", ".json"):
            if (path := folder / f"{name}{suffix}").is_file():
                return [read_json_lines(path, _hub_names(task, split))]
    return []


def _saved(task: Task, folder: Path, split: str) -> list[Table]:
    path = folder / _hub_split(split)
    return [read_saved(path, _hub_names(task, split))] if (path / "state.json").is_file() else []
