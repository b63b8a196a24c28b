"""The digests of a file, taken in threads: reading a model should not wait for them, and nothing needs them at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

Chunks = Callable[[], Iterable[bytes | memoryview]]


class Digests:
    """SHA-256 and MD5 of the same bytes; both are begun here, and waited for where they are asked for.

    Args:
        chunks: gives the bytes in order; called once by each thread. They must hold still until both are done.
    """

    def __init__(self, chunks: Chunks) -> None:
        pool = ThreadPoolExecutor(2)
        self._sha256 = pool.submit(lambda: sha256(chunks()))
        self._md5 = pool.submit(lambda: _hexdigest(hashlib.md5(usedforsecurity=False), chunks()))
        pool.shutdown(wait=False)

    @property
    def sha256(self) -> str:
        """Hex digest."""
        return self._sha256.result()

    @property
    def md5(self) -> str:
        """Hex digest as DVC stores it: an identity, no protection."""
        return self._md5.result()

    def finish(self) -> None:
        """Wait for both, and raise what the reading of the bytes raised."""
        self._sha256.result()
        self._md5.result()


def sha256(chunks: Iterable[bytes | memoryview]) -> str:
    """Hex digest of bytes in order."""
    return _hexdigest(hashlib.sha256(), chunks)


def _hexdigest(digest: hashlib._Hash, chunks: Iterable[bytes | memoryview]) -> str:
    for part in chunks:
        digest.update(part)
    return digest.hexdigest()
