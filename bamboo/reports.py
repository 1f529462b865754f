"""What became of the weights of a source, in lines for people."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What loading the weights of a source did.

    Args:
        kind: what the source turned out to be.
        loaded: number of tensors that the model received.
        notes: what was taken for granted, renamed, resampled or adapted.
        unused: the keys of the source that have no place in the model, each with the reason.
        fresh: the keys of the model that the source has no weights for.
    """

    source: str
    kind: str
    loaded: int
    notes: tuple[str, ...] = ()
    unused: dict[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.kind}): {self.loaded} tensors loaded, {len(self.unused)} not used", *self.notes]
        by_reason = defaultdict(list)
        for key, reason in self.unused.items():
            by_reason[reason].append(key)
        lines += [f"{len(keys)} not used, {reason}: {_some(keys)}" for reason, keys in by_reason.items()]
        if self.fresh:
            lines.append(f"{len(self.fresh)} start fresh: {_some(self.fresh)}")
        return "\n  ".join(lines)


def _some(keys: Iterable[str]) -> str:
    names = [*keys]
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
