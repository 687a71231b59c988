"""All randomness is a function of the seed and of what is being drawn, never of what ran before it."""

from hashlib import blake2b


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, such as (seed, "pretrain", "order", epoch); purposes do not share draws."""
    digest = blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
