"""The keys that a service asks for: read from a file, kept and compared as digests."""

import hashlib
import hmac
from collections.abc import Collection
from pathlib import Path

from asyncdiff.errors import ConfigurationError

_LEAST = 16  # characters


def read_keys(file: Path) -> tuple[bytes, ...]:
    """The digests of the keys in a file, one in a line.

    Raises:
        ConfigurationError: it cannot be read, or has no key, or one that is easily guessed.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file with the keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigurationError(f"{file} has no key in it: one in a line")
    if min(map(len, keys)) < _LEAST:
        raise ConfigurationError(
            f"{file} has a key of less than {_LEAST} characters, which can be guessed; try: openssl rand -hex 32"
        )
    return tuple(_digest(key) for key in keys)


def is_key(given: str, digests: Collection[bytes]) -> bool:
    """Whether it is one of the keys. It takes the same time whatever is given."""
    own = _digest(given)
    return sum(hmac.compare_digest(own, digest) for digest in digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
