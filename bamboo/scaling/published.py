"""Published numbers, and how well they are known here. All are of language models, in tokens."""

from typing import NamedTuple


class Published(NamedTuple):
    """A number as the paper writes it, the ends of its range, the paper, and where the number was read."""

    text: str
    low: float
    high: float
    source: str
    evidence: str


SHUAI = ("Shuai et al. 2024, arXiv 2412.01505", "a summary of the paper")
SHUAI_CITED = (SHUAI[0], "others who cite it")
HOFFMANN = ("Hoffmann et al. 2022, arXiv 2203.15556, approach 3", "others who cite it")
BESIROGLU = ("Besiroglu et al. 2024, arXiv 2404.10102, a refit of Hoffmann et al.", "others who cite it")


def _number(value: float, source: tuple[str, str]) -> Published:
    return Published(f"{value:g}", value, value, *source)


PUBLISHED = {
    "alpha": (_number(0.34, HOFFMANN), _number(0.3478, BESIROGLU)),
    "beta": (_number(0.28, HOFFMANN), _number(0.3658, BESIROGLU)),
    "best N: exponent in compute": (_number(0.464, SHUAI), _number(0.4565, HOFFMANN), _number(0.5126, BESIROGLU)),
    "best D: exponent in compute": (_number(0.536, SHUAI), _number(0.5435, HOFFMANN), _number(0.4874, BESIROGLU)),
    "best batch at fixed data: exponent in D": (_number(0.264, SHUAI_CITED),),
    "best batch at fixed data: prefactor": (Published("3240 (in tokens)", 3240, 3240, *SHUAI_CITED),),
    "best batch at fixed compute: exponent in C": (_number(0.102, SHUAI),),
    "best learning rate: exponent in batch size": (Published("0.75 to 1", 0.75, 1.0, *SHUAI),),
}
"""By the quantity of a report that they belong to."""
