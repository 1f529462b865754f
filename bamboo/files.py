"""Files that are never half-written, and weights that are never code."""

import argparse
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bamboo.errors import InputError

if TYPE_CHECKING:  # torch takes half a gigabyte, which who writes text or tables can do without
    from torch import Tensor


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write into; it takes the place of `path` once it is complete on the disk.

    Missing folders are made. If the body raises, `path` is left as it was. Raises `InputError` for an unwritable place.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # which libraries that put a file of their own in its place make narrower
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder, so that nothing is computed for a place that takes no files. Raises `InputError` for such."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, whole or not at all; returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write plain data as JSON, whole or not at all; returns its path. A number that is not finite is a ValueError."""
    return write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `InputError` where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): it is cut short or damaged") from error


def link(source: str | Path, path: str | Path) -> None:
    """Give a file a second name, in the place of what has that name; a copy where the file system has no hard links."""
    with atomic_write(path) as temporary:
        try:
            temporary.unlink()
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_weights(path: Path, weights: dict[str, "Tensor"], arguments: dict[str, Any]) -> Path:
    """Write tensors as safetensors, with the arguments of the model in the file's own metadata."""
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in weights.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "bamboo": json.dumps(arguments)})
    return path


def read_file(path: str | Path) -> dict[str, Any]:
    """What a file of weights holds, on the CPU and mapped into memory where possible; code in a file never runs.

    A safetensors file that `write_weights` made gives `{"model": tensors, "hyper_parameters": arguments}`, any other
    its tensors by name. Other files are read by `torch.load`.

    Raises:
        InputError: for a file that is missing, cut short, no checkpoint, or that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: give the path of a checkpoint file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not weights by name: give a checkpoint file")
    return content


def is_text_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether what a file holds is a checkpoint of a masked language model: those carry their tokenizer."""
    return isinstance(content.get("tokenizer"), str) and "state_dict" in content


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = file.metadata() or {}
        if "bamboo" not in metadata:
            return tensors
        return {"model": tensors, "hyper_parameters": json.loads(metadata["bamboo"])}
    except Exception as error:  # safetensors and json raise many kinds; all mean that the file is damaged
        raise InputError(f"{path} is cut short or no safetensors file: copy or download it again") from error


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        # The options of a command line stand in many training checkpoints, and are harmless.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch and pickle raise many kinds; all mean that the file cannot be used
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            reason = f"{path} holds code ({code[1]}), which is not run: save its tensors alone, best as safetensors"
            raise InputError(reason) from error
        raise InputError(f"{path} is cut short or no checkpoint: copy or download it again") from error
