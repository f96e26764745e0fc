"""Numbers from strings, the same on every machine and in every process."""

from hashlib import blake2b


def hash63(*parts: object) -> int:
    """A number in [0, 2^63) from the text of the parts: fits an int64 tensor, collides about never."""
    digest = blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
