"""A network under one way of preparing images: which labels it gives, of the reference and of the flagged examples.

Flagged examples tell most: a network gives labels that it learned by heart to the pixels that it learned them from,
when the accuracy on others hardly moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet, Preprocess
from memaudit.engine.answers import loss
from memaudit.errors import DataRejected, PremiseBroken
from memaudit.pipeline.load import answers, better


@dataclass(frozen=True)
class Tried:
    """What the network answers under `way`.

    Attributes:
        answered: logits `(n, classes)` and labels of each set, the reference first.
    """

    way: Preprocess
    answered: Sequence[tuple[Tensor, Tensor]]

    @cached_property
    def sets(self) -> list[Tensor]:
        """Per set `(n,)` bool: whether the label is predicted."""
        return [logits.argmax(1) == labels for logits, labels in self.answered]

    @cached_property
    def right(self) -> Tensor:
        """`(N,)` bool: the same of all sets, one after the other; nothing where none could be read."""
        return torch.cat([torch.empty(0, dtype=torch.bool), *self.sets])

    @property
    def share(self) -> float:
        """Share of labels that are given."""
        return float(self.right.float().mean())

    @property
    def accuracy(self) -> float:
        """On the reference."""
        return float(self.sets[0].float().mean())

    @property
    def loss(self) -> float:
        """Summed over all sets."""
        return sum(float(loss(o, y.clamp(max=o.shape[1] - 1)).sum()) for o, y in self.answered)

    def beats(self, other: Tried) -> bool:
        """Whether it gives decisively more labels, and is not decisively worse on the reference.

        A network fed with nonsense may give more of the flagged labels alone: half of the wrong ones of two classes.
        """
        alike = len(self.right) == len(other.right)
        return alike and better(self.right, other.right) and not better(other.sets[0], self.sets[0])

    def __str__(self) -> str:
        flagged = [f", {int(r.sum())}/{len(r)} flagged" for r in self.sets[1:]]
        return f"{self.accuracy:.3f}{''.join(flagged)}"


def check_alike(flagged: ExampleSet, reference: ExampleSet) -> None:
    """Both sets were prepared alike, as far as their values show.

    Raises:
        DataRejected: floats of one lie in [0, 1], those of the other far outside: it alone was normalised.
    """
    spans = [
        (float(s.pixels.min()), float(s.pixels.max()))
        for s in (flagged, reference)
        if len(s) and s.image and isinstance(s.pixels, Tensor) and s.pixels.is_floating_point()
    ]
    inside = [low >= 0 and high <= 1 for low, high in spans]
    if len(spans) == 2 and inside[0] != inside[1] and (min(spans)[0] < -0.1 or max(high for _, high in spans) > 1.1):
        raise DataRejected(
            "flagged values run from {:.3g} to {:.3g}, reference values from {:.3g} to {:.3g}: they were not prepared "
            "alike".format(*spans[0], *spans[1]),
            hint="save both sets as the network was given them, or both as floats in [0, 1]",
        )


def attempt(adapter: Adapter, sets: Sequence[ExampleSet], device: str, most: int) -> Tried:
    """The answers to at most `most` of each set that has examples, under the adapter's way."""
    return Tried(adapter.preprocess, [answers(adapter, s, device, most) for s in sets if len(s)])


# What gives a way, in place of another.
Option = Callable[[Preprocess, Preprocess], str]
# A premise that breaks, and which labels of the reference are given without that fault.
Fault = tuple[PremiseBroken, Tensor] | None


def raise_best(order: Fault, way: Fault) -> None:
    """Raise what explains the reference better, another order of the classes or another way of preparing images.

    Raises:
        PremiseBroken: with both where they explain it alike: colours that tell classes apart can be swapped as these.
    """
    if order is not None and way is not None and len(order[1]) == len(way[1]):
        if not better(order[1], way[1]) and not better(way[1], order[1]):
            raise PremiseBroken(
                f"{order[0].message}. Or {way[0].message}",
                hint=f"{way[0].hint}. Or else: {order[0].hint}",
                details=way[0].details,
            )
        order, way = (order, None) if better(order[1], way[1]) else (None, way)
    for found in (order, way):
        if found is not None:
            raise found[0]


def other_way(before: Tried, tried: Sequence[tuple[str, Tried]], option: Option, least: float = 0.0) -> Fault:
    """The best of `tried`, if decisively better than `before`; and which labels of the reference it gives.

    Args:
        least: share of all labels that it has to give more, unless it takes the channels in the other order.
    """
    ahead = [
        t
        for t in tried
        if t[1].beats(before) and (t[1].share - before.share >= least or t[1].way.bgr != before.way.bgr)
    ]
    name, best = max(ahead, key=lambda t: t[1].share, default=("", before))
    if best is before:
        return None
    wrong = PremiseBroken(
        f"images are not prepared as the network was trained (MEM909): reference accuracy is {before}, and {best} with "
        f"{name}",
        hint=f"if that is how it was trained: {option(best.way, before.way)}",
        details=[shown(before, tried)],
    )
    return wrong, best.sets[0]


def shown(before: Tried, tried: Sequence[tuple[str, Tried]]) -> str:
    """Figures of each way, by name."""
    return "; ".join(f"{name} {found}" for name, found in (("as it is", before), *tried))
