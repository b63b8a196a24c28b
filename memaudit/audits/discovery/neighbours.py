"""Neighbours over a whole set: every example asks its nearest others, never itself or its copies.

Deep k-NN (Papernot and McDaniel 2018) as in `audits.atypicality`, on features that are kept in half precision and
within a budget of memory whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.audits.atypicality import FEATURE_WIDTH, NEIGHBOURS, pooled, voting_sites
from memaudit.audits.discovery.copies import Copies
from memaudit.data.examples import ExampleSet
from memaudit.data.wide import Wide
from memaudit.engine.answers import answered
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Observe, Seen
from memaudit.network.units import UnitSpace

# Bytes that all features may take; a projection narrows them where there are many examples.
FEATURES = 256 * 2**20
NARROWEST = 64
# The most similar ones that are remembered: a few are shown, once it is known whose labels can be trusted.
REMEMBERED = 12
# Whose votes are asked for: of more examples so many, drawn by label. Each example asks all of them, so that time and
# memory grow with the number of examples and no faster.
VOTERS = 20_000
# Examples whose neighbours are sought at a time, and of those whose votes are asked for.
PART, WIDENED = 512, 2048


@dataclass(frozen=True)
class Votes:
    """What the nearest others say.

    Attributes:
        shares: `(N, classes)`: of the neighbours' labels, averaged over layers; rows sum to 1.
        nearest: `(N, REMEMBERED)` int32: the most similar others over all layers.
        similarity: `(N, REMEMBERED)`: their mean cosine.
    """

    shares: Wide
    nearest: Tensor
    similarity: Tensor


def features(
    evaluator: Evaluator, examples: ExampleSet, space: UnitSpace, count: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """What is kept of the logits, `(N, 4)`, and per voting layer `(N, F)` in half precision, in one pass.

    Args:
        count: of the examples that features are held of at once, where it is another.
    """
    voting = voting_sites(space)
    width = max(NARROWEST, min(FEATURE_WIDTH, FEATURES // (2 * len(voting) * (count or len(examples)))))

    def reduce(number: int, tensor: Tensor) -> Seen:
        return (_half(pooled(tensor, number, examples.image, width)),) if number in voting else ()

    said, layers = torch.empty(0, 4), [torch.empty(0, 0)] * len(voting)
    for rows, (one, values) in evaluator.parts(examples, range(len(examples)), Observe(space, reduce, answered)):
        seen = [value[0] for value in values if value]
        if not rows.start:
            said, *layers = (part.new_empty(len(examples), part.shape[1]) for part in (one, *seen))
        for table, part in zip((said, *layers), (one, *seen), strict=True):
            table[rows] = part
    return said, layers


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

    # Fast path; its slow twin: tests/twins.py.
    def asked(self, rows: Tensor, layers: Sequence[Tensor], classes: int, copies: Copies) -> Votes:
        """What the nearest of them say of the examples at `rows`, whose features are `layers`, `(rows, F)` each."""
        k = max(1, min(NEIGHBOURS, len(self.rows) // (2 * classes)))
        place = torch.full((len(copies.rows) + 1,), -1)  # and one more, where -1 leads to
        place[self.rows] = torch.arange(len(self.rows))

        def of(part: Tensor) -> Votes:
            same = place[torch.cat([rows[part, None], copies.rows[rows[part]]], 1)]
            at, which = (same >= 0).nonzero(as_tuple=True)
            shares, ones = torch.zeros(len(part), classes), torch.ones(len(part), k)
            total = torch.zeros(len(part), len(self.rows))
            for layer, centre, key in zip(layers, self.centres, self.keys, strict=True):
                similarity = _similarity(_keyed(layer[part], centre).float(), key)
                similarity[at, same[at, which]] = -torch.inf
                chosen = self.labels[similarity.topk(k, dim=1).indices]
                shares += torch.zeros(len(part), classes).scatter_add_(1, chosen, ones) / k / len(layers)
                total += similarity.div_(len(layers))
            best = total.topk(min(REMEMBERED, len(self.rows) - 1), dim=1)
            return Votes(shares, self.rows[best.indices].int(), best.values)

        return joined(map(of, torch.split(torch.arange(len(rows)), PART)), len(rows))


def joined(parts: Iterable[Votes], count: int, table: Callable[[int, int], Wide] = torch.zeros) -> Votes:
    """What is said of the `count` examples of all parts, each of which is held until it is written down.

    Args:
        table: makes the one for the shares.
    """
    shares: Wide | None = None
    start = 0
    for part in parts:
        if shares is None:
            shares = table(count, part.shares.shape[1])
            nearest, similarity = (one.new_empty(count, one.shape[1]) for one in (part.nearest, part.similarity))
        rows = slice(start, start + len(part.shares))
        shares[rows], nearest[rows], similarity[rows] = part.shares[:], part.nearest, part.similarity
        start = rows.stop
    assert shares is not None  # noqa: S101 - somebody is asked
    return Votes(shares, nearest, similarity)


def _half(values: Tensor) -> Tensor:
    """Half precision, scaled per example so that nothing overflows: only directions count."""
    return F.normalize(values, dim=1).half()


def _mean(layer: Tensor) -> Tensor:
    return torch.stack([part.float().sum(0) for part in torch.split(layer, PART)]).sum(0) / len(layer)


def _similarity(own: Tensor, keys: Tensor) -> Tensor:
    """`(n, V)` cosines of `own` `(n, F)` and `keys` `(V, F)`, of which no more than a part is widened at a time."""
    found = torch.empty(len(own), len(keys))
    for start in range(0, len(keys), WIDENED):
        part = keys[start : start + WIDENED]
        torch.mm(own, part.float().T, out=found[:, start : start + len(part)])
    return found


def _keyed(values: Tensor, centre: Tensor) -> Tensor:
    return torch.cat([F.normalize(part.float() - centre, dim=1).half() for part in torch.split(values, PART)])
