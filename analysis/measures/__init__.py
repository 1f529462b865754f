"""How alike the tokens of a sample are: pure functions of token matrices (batch, tokens, width), one value per sample.

`mask` (batch, tokens) is true where a token counts; without it all do. Everything is computed in fp32, also under
autocast, whatever the precision of the tokens. Where a measure is undefined (fewer than two tokens) its value is NaN,
and a NaN among the tokens that count gives a NaN. Notation: X has n tokens x_i that count, `mean` is their mean token,
x^_i = x_i / ||x_i||, and ||.|| of a matrix is the Frobenius norm.
"""

from .attention import attention_entropy, second_singular_value
from .bound import projection_norms, rate_bound, smoothing_rate
from .spectra import dirichlet_energy, ring_count, spectrum
from .tokens import (
    effective_rank,
    energy_rank,
    entropy_rank,
    high_frequency_gain,
    high_frequency_norm,
    high_frequency_ratio,
    inliers,
    outlier_share,
    prefix_similarity,
    relative_residual,
    singular_values,
    stable_rank,
    token_norm,
    token_similarity,
    update_ratio,
)

__all__ = [
    "attention_entropy",
    "dirichlet_energy",
    "effective_rank",
    "energy_rank",
    "entropy_rank",
    "high_frequency_gain",
    "high_frequency_norm",
    "high_frequency_ratio",
    "inliers",
    "outlier_share",
    "prefix_similarity",
    "projection_norms",
    "rate_bound",
    "relative_residual",
    "ring_count",
    "second_singular_value",
    "singular_values",
    "smoothing_rate",
    "spectrum",
    "stable_rank",
    "token_norm",
    "token_similarity",
    "update_ratio",
]
