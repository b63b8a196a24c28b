"""Neighbours over a whole set: every example asks its nearest others, never itself or its copies.

Deep k-NN (Papernot and McDaniel 2018) as in `audits.atypicality`, on features that are kept in half precision and
within a budget of memory whatever the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def features(evaluator: Evaluator, examples: ExampleSet, space: UnitSpace) -> tuple[Tensor, list[Tensor]]:
    """Logits `(N, classes)`, and per voting layer `(N, F)` in half precision, in one pass."""
    voting = voting_sites(space)
    width = max(NARROWEST, min(FEATURE_WIDTH, FEATURES // (2 * len(voting) * len(examples))))

    def reduce(number: int, tensor: Tensor) -> Seen:
        return (_half(pooled(tensor, number, examples.image, width)),) if number in voting else ()

    logits, seen = evaluator.observe(examples, space, reduce)
    return logits, [torch.cat([batch[0] for batch in seen[number]]) for number in voting]


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
    count = len(labels)
    k = max(1, min(NEIGHBOURS, count // (2 * classes)))
    centres = [_mean(layer) for layer in layers]
    keys = [_unit(layer, centre).half() for layer, centre in zip(layers, centres, strict=True)]
    shares = torch.zeros(count, classes)
    nearest, similar = [], []
    for start in range(0, count, PART):
        rows = torch.arange(start, min(start + PART, count))
        same = torch.cat([rows[:, None], copies.rows[rows]], 1)
        at, which = (same >= 0).nonzero(as_tuple=True)
        total = torch.zeros(len(rows), count)
        for key in keys:
            similarity = key[rows].float() @ key.float().T
            similarity[at, same[at, which]] = -torch.inf
            found = labels[similarity.topk(k, dim=1).indices]
            shares[rows] += F.one_hot(found, classes).float().mean(1) / len(layers)
            total += similarity / len(layers)
        best = total.topk(min(REMEMBERED, count - 1), dim=1)
        nearest.append(best.indices)
        similar.append(best.values)
        tick(len(rows))
    return Votes(shares, torch.cat(nearest), torch.cat(similar))


def _half(values: Tensor) -> Tensor:
    """Half precision, scaled per example so that nothing overflows: only directions count."""
    return F.normalize(values, dim=1).half()


def _mean(layer: Tensor) -> Tensor:
    return torch.stack([part.float().sum(0) for part in torch.split(layer, PART)]).sum(0) / len(layer)


def _unit(values: Tensor, centre: Tensor) -> Tensor:
    return F.normalize(values.float() - centre, dim=1)
