"""Configurations as nested mappings: put together, and changed by the path of a key."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf


def at(key: str, value: Any) -> dict[str, Any]:
    """A nested mapping that holds a value at the path of a key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def merge(*configs: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations over one another, later ones over earlier ones; lists are replaced."""
    merged = OmegaConf.merge(*(OmegaConf.create(dict(config)) for config in configs))
    return OmegaConf.to_container(merged)  # type: ignore[return-value]


def has_key(config: Mapping[str, Any], key: str) -> bool:
    """Whether a configuration holds a key, given by its path."""
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True
