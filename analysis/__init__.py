"""How alike tokens grow with depth: `profile` measures, `capture` looks inside, `measures` are the maths."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import measures
    from .captures import State, capture
    from .monitor import SimilarityMonitor
    from .profiles import Comparison, Profile, compare
    from .profiling import profile

_HOMES = {
    "Comparison": "profiles",
    "Profile": "profiles",
    "SimilarityMonitor": "monitor",
    "State": "captures",
    "capture": "captures",
    "compare": "profiles",
    "profile": "profiling",
}

__all__ = ["Comparison", "Profile", "SimilarityMonitor", "State", "capture", "compare", "measures", "profile"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the command line reads this package without loading torch."""
    from importlib import import_module

    if name == "measures":
        return import_module(".measures", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
