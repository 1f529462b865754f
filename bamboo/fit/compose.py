"""Configurations made of others: `base: [file, ...]` at the top of a YAML names what it changes, relative to itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bamboo.errors import InputError


def compose(path: Path) -> DictConfig:
    """A configuration merged over its bases, later ones over earlier ones; interpolations are left as they stand.

    Raises:
        InputError: for a file that is missing or is not a YAML mapping.
    """
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise InputError(f"{path} is not a configuration: expected a YAML mapping of keys to values")
    bases = config.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    return cast(DictConfig, OmegaConf.merge(*(compose(path.parent / base) for base in bases), config))


def compose_arguments(args: list[str]) -> list[str]:
    """A command line whose `--config` files have become one composed text, with interpolations resolved.

    An interpolation such as `${seed_everything}` sees what the rest of the command line says of a configured key.
    """
    files, rest = _split_off_configs(args)
    if not files:
        return args
    config = cast(DictConfig, OmegaConf.merge(*(compose(Path(file).expanduser()) for file in files)))
    overrides = [f"{key}={value}" for key, value in _overrides(rest) if _is_configured(config, key)]
    try:
        text = OmegaConf.to_yaml(OmegaConf.merge(config, OmegaConf.from_dotlist(overrides)), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"cannot resolve the configuration: {' '.join(str(error).split())}") from error
    return [*rest[:1], "--config", text, *rest[1:]]


def _is_configured(config: DictConfig, key: str) -> bool:
    try:
        return OmegaConf.select(config, key) is not None
    except OmegaConfBaseException:  # it leads into a list, or to what cannot be resolved yet
        return False


def _split_off_configs(args: list[str]) -> tuple[list[str], list[str]]:
    files: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("-c", "--config"):
            rest.append(word)
        elif value := value if equals else next(words, ""):
            files.append(value)
        else:
            raise InputError(f"{name} needs the path of a configuration")
    return files, rest


def _overrides(words: list[str]) -> Iterator[tuple[str, str]]:
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--") and (equals or not following.startswith("--")):
            key = re.sub(r"^(model|data)\.(?!init_args|class_path)", r"\1.init_args.", name[2:])
            yield key, value if equals else following
