"""What others published, and how well it is known here. All of it is of language models, in tokens."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published number.

    Args:
        value: as it is written in tables.
        source: paper.
        evidence: how the number came here.
        low: the number, or the low end of its range.
        high: the number, or the high end of its range.
    """

    value: str
    source: str
    evidence: str
    low: float
    high: float


SHUAI = "Shuai et al. 2024, arXiv 2412.01505"
HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556, approach 3"
BESIROGLU = "Besiroglu et al. 2024, arXiv 2404.10102, a refit of Hoffmann et al."
SUMMARY = "a summary of the paper"
CITED = "others who cite it"


def _one(value: float, source: str, evidence: str) -> Published:
    return Published(f"{value:g}", source, evidence, value, value)


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "alpha": (_one(0.34, HOFFMANN, CITED), _one(0.3478, BESIROGLU, CITED)),
    "beta": (_one(0.28, HOFFMANN, CITED), _one(0.3658, BESIROGLU, CITED)),
    "best N: exponent in compute": (
        _one(0.464, SHUAI, SUMMARY),
        _one(0.4565, HOFFMANN, CITED),
        _one(0.5126, BESIROGLU, CITED),
    ),
    "best D: exponent in compute": (
        _one(0.536, SHUAI, SUMMARY),
        _one(0.5435, HOFFMANN, CITED),
        _one(0.4874, BESIROGLU, CITED),
    ),
    "best batch at fixed data: exponent in D": (_one(0.264, SHUAI, CITED),),
    "best batch at fixed data: prefactor": (Published("3240 (in tokens)", SHUAI, CITED, 3240.0, 3240.0),),
    "best batch at fixed compute: exponent in C": (_one(0.102, SHUAI, SUMMARY),),
    "best learning rate: exponent in batch size": (Published("0.75 to 1", SHUAI, SUMMARY, 0.75, 1.0),),
}
"""By the quantity that a report has beside them."""
