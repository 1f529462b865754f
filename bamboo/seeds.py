"""Seeds that follow from what is drawn, never from who draws it or from what was drawn before."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that is the same for the same parts on every platform and in every process.

    `derive_seed(seed, "view", epoch, index)` and the like give each draw a random stream of its own.
    """
    text = ascii([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
