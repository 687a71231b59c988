"""Random numbers depend on the seed and on their purpose, never on what ran before."""

from hashlib import blake2b


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, such as (seed, "pretrain", "order", epoch). Each purpose has its own seed."""
    digest = blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
