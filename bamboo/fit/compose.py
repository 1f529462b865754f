"""Configurations made of others: `base: [file, ...]` at the top of a YAML names what it changes, relative to itself.

A list replaces that of the base; under its name with a plus sign (`callbacks+:`) it is appended to it. `${shape.name}`
and `${shape.patch_size}` are those of the model's shape, and `sizes: [base]` lets a recipe run at these sizes alone.
"""

import re
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from bamboo.errors import InputError, unknown
from bamboo.shapes import SHAPES, default_patch_size, find_shape


def find_config(name: str | Path) -> Path:
    """The path of a configuration: a file, or one of the package by its name, such as `pretrain/quickstart`."""
    path = Path(name).expanduser()
    if path.suffix or (path.exists() and not path.is_dir()):  # finetune/glue is a folder of the repository too
        return path
    shipped = shipped_configs()
    if str(name) not in shipped:
        raise unknown("configuration", str(name), shipped)
    return shipped[str(name)]


def shipped_configs() -> dict[str, Path]:
    """The configurations of the package, by name."""
    root = Path(str(files("bamboo.configs")))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.rglob("[!_]*.yaml"))}


def compose(*paths: Path) -> DictConfig:
    """Configurations over one another and over their bases, later ones on top; interpolations are left."""
    merged: dict[str, Any] = {}
    for layer in (layer for path in paths for layer in _layers(path)):
        merged = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(merged, _appended(merged, layer))))
    return OmegaConf.create(merged)


def _layers(path: Path) -> Iterator[dict[str, Any]]:
    """The contents of a file's bases, lowest first, and of the file itself."""
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise InputError(f"{path} is not a configuration: expected a YAML mapping of keys to values")
    bases = config.pop("base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _layers(path.parent / base)
    yield cast(dict[str, Any], OmegaConf.to_container(config))


def _appended(below: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with each list `name+` written out as the list `name` below it and its own entries."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = str(key)
        if isinstance(value, dict):
            beneath = below.get(name)
            value = _appended(beneath if isinstance(beneath, dict) else {}, value)
        elif name.endswith("+") and isinstance(value, list):
            name = name[:-1]
            value = [*(below.get(name) or []), *value]
        result[name] = value
    return result


def compose_arguments(args: list[str]) -> list[str]:
    """A command line whose `--config` files have become one composed text, with interpolations resolved.

    An interpolation such as `${seed_everything}` sees what the rest of the command line says of a configured key.
    A value of `null` goes into the text, for jsonargparse takes none for `--model.init_args.recipe.warmup_share`.
    """
    paths, words = _split_off_configs(args)
    if not paths:
        return args
    config = compose(*map(find_config, paths))
    configured = cast(dict[str, Any], OmegaConf.to_container(config))
    overrides: list[str] = []
    rest: list[str] = []
    for option in _options(words):
        name, _, value = "=".join(option).partition("=")
        key = re.sub(r"^--(model|data)\.(?!init_args|class_path)", r"--\1.init_args.", name)[2:]
        is_null = value == "null" and key.startswith(("model.", "data."))
        if is_null or (value and select(configured, key) is not None):
            overrides.append(f"{key}={value}")
        if not is_null:
            rest += option
    merged = cast(DictConfig, OmegaConf.merge(config, OmegaConf.from_dotlist(overrides)))
    return [*rest[:1], "--config", OmegaConf.to_yaml(OmegaConf.create(resolve(merged))), *rest[1:]]


def select(config: Mapping[str, Any], key: str) -> Any:
    """What a configuration holds at the path of a key, None where it holds nothing."""
    here: Any = config
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def resolve(config: Mapping[str, Any], complete: bool = True) -> dict[str, Any]:
    """A composed configuration without interpolations.

    Raises:
        InputError: where a value is left open (`???`) in a `complete` configuration, an interpolation leads nowhere, or
            the recipe is for other sizes than that of the shape.
    """
    open_config = OmegaConf.create(cast(dict[str, Any], config))
    sizes, arguments = open_config.pop("sizes", None), OmegaConf.select(open_config, "model.init_args")
    try:
        if isinstance(arguments, DictConfig) and "shape" in arguments:
            open_config.shape = _names_of_shape(arguments.shape, sizes)
        container = OmegaConf.to_container(open_config, resolve=True, throw_on_missing=complete)
    except MissingMandatoryValue as error:
        raise InputError(f"the configuration leaves a value open: give --{error.full_key} VALUE") from error
    except OmegaConfBaseException as error:
        raise InputError(f"cannot resolve the configuration: {' '.join(str(error).split())}") from error
    resolved = cast(dict[str, Any], container)
    resolved.pop("shape", None)
    return resolved


def _names_of_shape(configured: Any, sizes: Sequence[str] | None) -> dict[str, Any]:
    """What the model's shape is called and its patch size, both for interpolations; null is that of the encoder."""
    if configured is None:
        return {"name": "of-encoder", "patch_size": None}
    shape = find_shape(configured)
    name = next((name for name, named in SHAPES.items() if named == shape), str(shape))
    size = name.rpartition("-")[2]
    if sizes is not None and name in SHAPES and size not in sizes:
        loaded = {file: cast(DictConfig, OmegaConf.load(path)) for file, path in shipped_configs().items()}
        others = [file for file, config in loaded.items() if size in config.get("sizes", ())]
        raise InputError(
            f"this recipe is for shapes of size {', '.join(sizes)}, and model.init_args.shape is {name}: "
            f"recipes for it are {', '.join(others)}"
        )
    return {"name": name, "patch_size": default_patch_size(name)}


def _split_off_configs(args: list[str]) -> tuple[list[str], list[str]]:
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    try:
        known, rest = parser.parse_known_args(args)
    except ArgumentError as error:
        raise InputError("--config needs the path of a configuration") from error
    return known.config, rest


def _options(words: list[str]) -> list[list[str]]:
    """A command line in pieces: an option with its value, or one word."""
    pieces: list[list[str]] = []
    for word in words:
        if pieces and len(pieces[-1]) == 1 and re.match(r"--[^=]+$", pieces[-1][0]) and not word.startswith("--"):
            pieces[-1].append(word)
        else:
            pieces.append([word])
    return pieces
