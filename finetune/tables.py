"""Tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from bamboo.tables import table


def learning_rates(groups: Sequence[Mapping[str, Any]], peak: float) -> str:
    """The learning rate of each layer at the peak of the schedule, from the embedding to the head.

    Args:
        groups: of an optimizer, each with its `layer`, `lr_scale` and `params`.
        peak: learning rate of the head.
    """
    counts: dict[str, int] = {}
    scales: dict[str, float] = {}
    for group in groups:
        counts[group["layer"]] = counts.get(group["layer"], 0) + sum(p.numel() for p in group["params"])
        scales[group["layer"]] = group["lr_scale"]
    rows = [("layer", "parameters", "scale", "learning rate")]
    rows += [(layer, f"{counts[layer]:,}", f"{scale:.3g}", f"{peak * scale:.3g}") for layer, scale in scales.items()]
    return table(rows)
