"""What every measure is called, how it is defined, and how to read it: one table for code, command line and report."""

from collections.abc import Sequence
from dataclasses import dataclass

from bamboo.errors import unknown


@dataclass(frozen=True)
class Definition:
    """A measure as people see it.

    Args:
        title: a name for an axis.
        formula: the definition; X has the n tokens x_i that count as rows, m is their mean.
        reading: what a value says.
        group: `stream` and `branches` are measured by default; `ranks`, `pairs` and `attention` cost more.
    """

    title: str
    formula: str
    reading: str
    group: str


DEFINITIONS: dict[str, Definition] = {
    "token_similarity": Definition(
        "token similarity",
        "1/(n(n−1)) · Σ_{i≠j} x_i·x_j / (‖x_i‖ ‖x_j‖)",
        "mean cosine of all pairs of different tokens, signed: 1 where all point one way, 0 where they are unrelated",
        "stream",
    ),
    "between_similarity": Definition(
        "similarity between samples",
        "mean cosine of tokens of different samples",
        "what all samples have in common: no smoothing, however high",
        "stream",
    ),
    "excess_similarity": Definition(
        "excess similarity",
        "(within − between) / (1 − between), within the token similarity",
        "smoothing: 0 where tokens of one sample are no more alike than tokens of any two, 1 where all are the same",
        "stream",
    ),
    "same_position_similarity": Definition(
        "similarity at the same position",
        "mean cosine of tokens of different samples at one position",
        "how much more than between samples is what a position has of its own",
        "stream",
    ),
    "common_share": Definition(
        "common share",
        "‖μ‖², μ = mean of x_i / ‖x_i‖ over tokens and samples",
        "of the energy of unit tokens, the part that all tokens of all samples share",
        "stream",
    ),
    "position_share": Definition(
        "share of position",
        "mean_i ‖p_i‖², p_i = mean over samples at position i, less μ",
        "the part that a position has in all images; part of own in texts and under a mask",
        "stream",
    ),
    "sample_share": Definition(
        "share of the sample",
        "mean_b ‖c_b‖², c_b = mean over the tokens of sample b, less μ",
        "the part that the tokens of one sample share beyond that, which over-smoothing feeds",
        "stream",
    ),
    "own_share": Definition(
        "own share",
        "1 − common − position − sample",
        "the part that belongs to a token alone",
        "stream",
    ),
    "similarity_without_outliers": Definition(
        "token similarity without outliers",
        "token similarity of the tokens with ‖x_i‖ ≤ 3 · median ‖x_j‖",
        "what is left when high-norm artifact tokens are not counted",
        "stream",
    ),
    "cls_similarity": Definition(
        "similarity of the class token",
        "1/n · Σ_i c·x_i / (‖c‖ ‖x_i‖), c the class token",
        "how near the class token is to the tokens that count",
        "stream",
    ),
    "register_similarity": Definition(
        "similarity of the registers",
        "mean cosine between registers (or other prefix tokens) and tokens that count",
        "how near the registers are to the tokens that count",
        "stream",
    ),
    "high_frequency_ratio": Definition(
        "HC/DC ratio",
        "‖X − 1mᵀ‖ / (√n ‖m‖)",
        "what differs between tokens over what they share (Wang et al. 2022): 0 where all are equal",
        "stream",
    ),
    "relative_residual": Definition(
        "relative residual",
        "‖X − 1mᵀ‖ / ‖X‖",
        "distance from a matrix of equal rows (Dong et al. 2021): 0 where all tokens are equal, at most 1",
        "stream",
    ),
    "dirichlet_energy": Definition(
        "Dirichlet energy",
        "Σ_{(i,j) neighbours} ‖x_i − x_j‖² / ‖X‖²",
        "difference between neighbouring patches, or words that follow one another: 0 where all are equal",
        "stream",
    ),
    "token_norm": Definition("token norm", "1/n · Σ_i ‖x_i‖", "mean length of a token vector", "stream"),
    "outlier_share": Definition(
        "share of outliers",
        "share of tokens with ‖x_i‖ > 3 · median ‖x_j‖",
        "how many high-norm tokens there are",
        "stream",
    ),
    "spectrum": Definition(
        "spectrum",
        "share of ‖FFT(X)‖² in rings of frequency; ring 0 is the mean token",
        "low rings are what is smooth over the image or the text; all rings but 0 are the squared relative residual",
        "stream",
    ),
    "update_ratio": Definition(
        "norm of the update",
        "‖U‖ / ‖X‖, U what a branch adds to the stream X",
        "how much attention or MLP changes the stream",
        "branches",
    ),
    "effective_rank": Definition(
        "effective rank",
        "exp(−Σ p_k log p_k), p_k = s_k / Σ s, s the singular values of X",
        "number of directions that the tokens use (Roy and Vetterli 2007)",
        "ranks",
    ),
    "stable_rank": Definition("stable rank", "‖X‖² / s_1²", "1 where one direction holds all the energy", "ranks"),
    "absolute_similarity": Definition(
        "absolute token similarity",
        "1/(n(n−1)) · Σ_{i≠j} |x_i·x_j| / (‖x_i‖ ‖x_j‖)",
        "as some papers report it; never below the signed one, and not near 0 where the width is small",
        "pairs",
    ),
    "attention_entropy": Definition(
        "entropy of attention",
        "mean over heads and queries of −Σ_j A_ij log A_ij / log n_i, n_i the keys that query i may read",
        "1 where attention is uniform, 0 where each query reads one token; a query with one key to read is left out",
        "attention",
    ),
    "second_singular_value": Definition(
        "second singular value of attention",
        "s_2(A), mean over heads",
        "near 0 where attention maps all tokens to one",
        "ranks",
    ),
    "smoothing_rate": Definition(
        "smoothing rate",
        "√(n e^{2a} / (e^{2a} + n − 1)), a = max |logit|, of the worst head",
        "factor of the bound that belongs to the attention map, between 1 and √n",
        "attention",
    ),
    "attention_gain": Definition(
        "high-frequency gain of attention",
        "‖HC[SA(Z)]‖ / ‖HC[Z]‖, Z what attention reads",
        "below 1 attention draws tokens together",
        "attention",
    ),
    "attention_bound": Definition(
        "bound on the gain of attention",
        "σ₁ σ₂ H · smoothing rate",
        "the gain of attention cannot be above it (Wang et al. 2022); σ₁ and σ₂ are the largest spectral norms of a "
        "head's value and output projections, H is the number of heads",
        "attention",
    ),
    "residual_gain": Definition(
        "high-frequency gain of attention with its residual",
        "‖HC[X + U]‖ / ‖HC[X]‖, U what attention adds to the stream X",
        "below 1 tokens were drawn together although the stream goes on",
        "attention",
    ),
    "residual_bound": Definition(
        "bound on the gain with the residual",
        "1 + bound · γ ‖HC[Z]‖ / ‖HC[X]‖, γ the largest layer scale; Z = X in a post-norm block, so 1 + bound there",
        "the gain with the residual cannot be above it",
        "attention",
    ),
}
GROUPS = ("stream", "branches", "ranks", "pairs", "attention")
DEFAULT = ("stream", "branches")


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """The measures that names of measures and groups (`all` for every one) stand for, in the order of the table.

    Raises:
        InputError: for an unknown name, with near ones.
    """
    for name in names:
        if name not in (*DEFINITIONS, *GROUPS, "all"):
            raise unknown("measure", name, [*DEFINITIONS, *GROUPS, "all"])
    return tuple(
        name for name, definition in DEFINITIONS.items() if "all" in names or name in names or definition.group in names
    )


def describe(measure: str) -> Definition:
    """The definition of a measure; a ring of the spectrum, such as `spectrum/2`, has that of the spectrum."""
    return DEFINITIONS[measure.partition("/")[0]]
