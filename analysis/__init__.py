"""How alike tokens grow with depth: `profile` measures, `capture` looks inside, `measures` are the maths.

What is counted: measures/ (pure functions; definitions.py lists all), recording (from a state to its numbers)
Where it is seen: architectures (blocks, norms and attention by name), captures (hooks), attention_maps
What goes in: model_sources and data_sources (what a person names), inputs (batches, masks, which token is what)
What comes out: profiling (one pass) gives profiles (its result); plots, maps, report and pages draw and write it
Who asks: command (`bamboo profile`), monitor (while a model trains)
"""

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
