"""Classification, probes and nearest neighbours; the two callbacks that probe a pretraining run are named here."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .knn import NeighbourProbe
    from .online_probe import LinearProbe

_HOMES = {"LinearProbe": "online_probe", "NeighbourProbe": "knn"}

__all__ = ["LinearProbe", "NeighbourProbe"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line reads this package without loading torch."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
