"""Neighbours over a whole set: every example asks its nearest others, never itself or its copies.

Deep k-NN (Papernot and McDaniel 2018) as in `audits.atypicality`, on features that are kept in half precision and
within a budget of memory whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.audits.atypicality import FEATURE_WIDTH, NEIGHBOURS, pooled, voting_sites
from memaudit.audits.discovery.copies import Copies
from memaudit.data.examples import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import silent
from memaudit.engine.passes import Seen
from memaudit.network.units import UnitSpace

# Bytes that all features may take; a projection narrows them where there are many examples.
FEATURES = 256 * 2**20
NARROWEST = 64
# The most similar ones that are remembered: a few are shown, once it is known whose labels can be trusted.
REMEMBERED = 12
# Whose votes are asked for: of more examples so many, drawn by label. Each example asks all of them, so that time and
# memory grow with the number of examples and no faster.
VOTERS = 20_000
# Examples whose neighbours are sought at a time.
PART = 512


@dataclass(frozen=True)
class Votes:
    """What the nearest others say.

    Attributes:
        shares: `(N, classes)`: of the neighbours' labels, averaged over layers; rows sum to 1.
        nearest: `(N, REMEMBERED)`: the most similar others over all layers.
        similarity: `(N, REMEMBERED)`: their mean cosine.
    """

    shares: Tensor
    nearest: Tensor
    similarity: Tensor


def features(
    evaluator: Evaluator, examples: ExampleSet, space: UnitSpace, count: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits `(N, classes)`, and per voting layer `(N, F)` in half precision, in one pass.

    Args:
        count: of the examples that features are held of at once, where it is another.
    """
    voting = voting_sites(space)
    width = max(NARROWEST, min(FEATURE_WIDTH, FEATURES // (2 * len(voting) * (count or len(examples)))))

    def reduce(number: int, tensor: Tensor) -> Seen:
        return (_half(pooled(tensor, number, examples.image, width)),) if number in voting else ()

    logits, seen = evaluator.observe(examples, space, reduce)
    return logits, [torch.cat([batch[0] for batch in seen[number]]) for number in voting]


@dataclass(frozen=True)
class Voters:
    """Whose labels are asked for.

    Attributes:
        rows: `(V,)`: of the set.
        labels: `(V,)`.
        centres: per layer `(F,)`: their mean.
        keys: per layer `(V, F)` directions from it, in half precision.
    """

    rows: Tensor
    labels: Tensor
    centres: Sequence[Tensor]
    keys: Sequence[Tensor]

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, layers: Sequence[Tensor]) -> Voters:
        """Those at `rows`, whose features are `layers`, `(V, F)` each."""
        centres = [_mean(layer) for layer in layers]
        return cls(
            rows, labels, centres, [_keyed(layer, centre) for layer, centre in zip(layers, centres, strict=True)]
        )

    def asked(self, rows: Tensor, layers: Sequence[Tensor], classes: int, copies: Copies) -> Votes:
        """What the nearest of them say of the examples at `rows`, whose features are `layers`; see `vote`."""
        k = max(1, min(NEIGHBOURS, len(self.rows) // (2 * classes)))
        place = torch.full((len(copies.rows) + 1,), -1)  # and one more, where -1 leads to
        place[self.rows] = torch.arange(len(self.rows))

        def of(part: Tensor) -> Votes:
            same = place[torch.cat([rows[part, None], copies.rows[rows[part]]], 1)]
            at, which = (same >= 0).nonzero(as_tuple=True)
            shares = torch.zeros(len(part), classes)
            total = torch.zeros(len(part), len(self.rows))
            for layer, centre, key in zip(layers, self.centres, self.keys, strict=True):
                similarity = _keyed(layer[part], centre).float() @ key.float().T
                similarity[at, same[at, which]] = -torch.inf
                chosen = self.labels[similarity.topk(k, dim=1).indices]
                shares += F.one_hot(chosen, classes).float().mean(1) / len(layers)
                total += similarity.div_(len(layers))
            best = total.topk(min(REMEMBERED, len(self.rows) - 1), dim=1)
            return Votes(shares, self.rows[best.indices], best.values)

        return joined(map(of, torch.split(torch.arange(len(rows)), PART)), len(rows))


# Fast path; its slow twin: tests/twins.py.
def vote(
    layers: Sequence[Tensor], labels: Tensor, classes: int, copies: Copies, tick: Callable[[int], None] = silent
) -> Votes:
    """What the nearest others say of each example.

    Args:
        layers: per layer `(N, F)`.
        labels: `(N,)`.
        tick: called with the number of examples after each part.
    """
    everybody = torch.arange(len(labels))
    voters = Voters.of(everybody, labels, layers)

    def parts() -> Iterator[Votes]:
        for rows in torch.split(everybody, PART):
            yield voters.asked(rows, [layer[rows] for layer in layers], classes, copies)
            tick(len(rows))

    return joined(parts(), len(labels))


def joined(parts: Iterable[Votes], count: int) -> Votes:
    """What is said of the `count` examples of all parts, each of which is held until it is written down."""
    whole: list[Tensor] = []
    start = 0
    for part in parts:
        said = [getattr(part, field.name) for field in fields(Votes)]
        whole = whole or [torch.empty(count, *one.shape[1:], dtype=one.dtype) for one in said]
        for table, one in zip(whole, said, strict=True):
            table[start : start + len(one)] = one
        start += len(said[0])
    return Votes(*whole)


def _half(values: Tensor) -> Tensor:
    """Half precision, scaled per example so that nothing overflows: only directions count."""
    return F.normalize(values, dim=1).half()


def _mean(layer: Tensor) -> Tensor:
    return torch.stack([part.float().sum(0) for part in torch.split(layer, PART)]).sum(0) / len(layer)


def _keyed(values: Tensor, centre: Tensor) -> Tensor:
    return torch.cat([F.normalize(part.float() - centre, dim=1).half() for part in torch.split(values, PART)])
