"""What a search holds of one example under way, and what it claims in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """What the search claims of one example.

    Attributes:
        row: the example.
        cut: unit numbers in the order they were cut.
        erased: whether the label was lost within the budget.
    """

    row: int
    cut: tuple[int, ...]
    erased: bool


@dataclass(eq=False)
class Job:
    """One example under way.

    Attributes:
        cut: what is cut so far.
        margin: of `label` then, in full precision once a unit is cut; not a number before it was measured.
        needed: without this unit the label was seen to be kept.
        signal: `(total,)` of `signals`, where the search tries units.
    """

    row: int
    label: int
    cut: list[int] = field(default_factory=list)
    margin: float = math.nan
    needed: int | None = None
    signal: Tensor | None = None
