"""Which examples the running batch holds: every example-tied dropout can ask, and no forward changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index

import torch
from torch import Tensor

from memaudit.errors import UsageError


class Ids:
    """The example ids of the batch that is running; None outside of `example_ids`."""

    current: Tensor | None = None


@contextmanager
def example_ids(ids: Tensor | Sequence[int]) -> Iterator[None]:
    """Tell every `ExampleTiedDropout` that runs in the body which training examples the batch holds.

    Args:
        ids: `(N,)`, one integer per example of the batch, any integers, the same for an example in every epoch. With
            activation checkpointing, `backward()` belongs into the body as well.

    Raises:
        UsageError: they are no integers, or not one-dimensional.
    """
    before = Ids.current
    Ids.current = as_ids(ids)
    try:
        yield
    finally:
        Ids.current = before


def as_ids(ids: Tensor | Sequence[int]) -> Tensor:
    """Example ids as int64 `(N,)`.

    Raises:
        UsageError: they are no integers, or not one per example.
    """
    if not isinstance(ids, Tensor):
        try:
            ids = torch.tensor([signed(index(i)) for i in ids], dtype=torch.int64)
        except TypeError:
            raise UsageError("example ids must be integers, one per example of the batch") from None
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        kind = str(ids.dtype).removeprefix("torch.")
        raise UsageError(f"example ids must be integers of shape (N,), not {kind} {tuple(ids.shape)}")
    return ids.view(torch.int64) if ids.dtype == torch.uint64 else ids.to(torch.int64)


def signed(number: int) -> int:
    """`number` as a signed 64-bit integer; a larger one by its hash, so that no two are alike but by accident."""
    if -(1 << 63) <= number < 1 << 63:
        return number
    digest = hashlib.sha256(str(number).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
