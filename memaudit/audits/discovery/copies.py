"""Near-duplicates: an example must not be judged by its own copy.

Two images are near-duplicates when their pixels, on a coarse grid, are nearer to each other than a small share of the
distance at which images of the set usually have their nearest neighbour (the rule of cleanlab's Datalab, whose share
is used here).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.data.examples import ExampleSet

# Cells per side of the grid that images are compared on.
GRID = 8
# Share of the median distance to the nearest neighbour.
SHARE = 0.13
# Copies of one image that are looked at: a set of video frames has many.
MOST = 10
# Rows compared with others at a time, of which so many at a time: what comes of it stays in the processor's cache.
PART, OTHERS = 512, 2048
# Directions in which images are compared before all of their pixels are, and how many that seem near are looked at.
DIRECTIONS, MANY = 16, 32
# From more rows than the first number, as many as the second are asked how far their nearest neighbour is.
ALL, ASKED = 20_000, 4096


@dataclass(frozen=True)
class Copies:
    """Near-duplicates of each example.

    Attributes:
        rows: `(N, MOST)` int64, the nearest first; -1 where there are no more.
        distances: `(N, MOST)` root mean square difference of pixels in [0, 1] on the grid.
    """

    rows: Tensor
    distances: Tensor

    def pairs(self) -> list[tuple[int, int, float]]:
        """Each pair once, its lower row first, with its distance; in order."""
        found = {}
        for row, place in (self.rows >= 0).nonzero().tolist():
            other = int(self.rows[row, place])
            found[min(row, other), max(row, other)] = float(self.distances[row, place])
        return [(*pair, distance) for pair, distance in sorted(found.items())]

    def clusters(self) -> Tensor:
        """`(N,)`: the lowest row among an example's copies, copies of copies included."""
        parent = list(range(len(self.rows)))

        def root(row: int) -> int:
            while parent[row] != row:
                parent[row] = parent[parent[row]]
                row = parent[row]
            return row

        for first, second, _ in self.pairs():
            low, high = sorted((root(first), root(second)))
            parent[high] = low
        return torch.tensor([root(row) for row in range(len(parent))])


# Fast path; its slow twin: tests/twins.py.
def near_copies(examples: ExampleSet) -> Copies:
    """The near-duplicates in a set; pixels are read in parts, and only a coarse grid of them is kept.

    Two images are no farther apart along a few directions than they are. So each is compared along those in which
    images differ most, with those near it along the first one, and whole with those that are near along all: every pair
    is found, and most are never looked at.
    """
    coarse = _coarse(examples)
    radius = SHARE * _usual(coarse)
    directions = _directions(coarse)
    along = torch.cat([part.float() @ directions for part in torch.split(coarse, PART)])
    first, order = along[:, 0].sort()
    along = along[order]
    limit = radius**2 * coarse.shape[1] + 1e-5 * float((along**2).sum(1).max())  # and what rounding takes away
    rows, apart = torch.full((len(coarse), MOST), -1), torch.full((len(coarse), MOST), torch.inf)
    for start in range(0, len(coarse), PART):
        own = along[start : start + PART]
        low = int(torch.searchsorted(first, first[start] - limit**0.5))
        high = int(torch.searchsorted(first, first[start + len(own) - 1] + limit**0.5, right=True))
        found = [
            torch.stack([one + start, other + at])
            for at in range(low, high, OTHERS)
            for one, other in [_seem_near(own, along[at : min(at + OTHERS, high)], limit)]
        ]
        one, other = order[torch.cat(found, 1)]
        distance = _apart(coarse, one, other)
        near = (distance <= radius) & (one != other)
        _nearest_of(one[near], other[near], distance[near], rows, apart)
    most = max(1, int((rows >= 0).sum(1).max()))
    return Copies(rows[:, :most].clone(), apart[:, :most].clone())


def _seem_near(own: Tensor, others: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Pairs whose squared distance is within `limit`; of one row the `MANY` nearest, where there are many."""
    squared = torch.addmm((others**2).sum(1), own, others.T, alpha=-2)
    hit = squared <= (limit - (own**2).sum(1))[:, None]
    if int(hit.sum()) > MANY * len(own):
        nearest = squared.topk(min(MANY, len(others)), dim=1, largest=False).indices
        hit &= torch.zeros_like(hit).scatter_(1, nearest, torch.ones_like(nearest, dtype=torch.bool))
    one, other = hit.nonzero(as_tuple=True)
    return one, other


def _apart(coarse: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Root mean square difference of each pair."""
    pairs = zip(torch.split(one, OTHERS), torch.split(other, OTHERS), strict=True)
    return torch.cat([(coarse[a].float() - coarse[b].float()).square().mean(1).sqrt() for a, b in pairs])


def _nearest_of(one: Tensor, other: Tensor, distance: Tensor, rows: Tensor, apart: Tensor) -> None:
    """Write the `MOST` nearest of each row, nearest first, into the tables `(N, MOST)`."""
    order = distance.argsort(stable=True)
    order = order[one[order].argsort(stable=True)]
    one, other, distance = one[order], other[order], distance[order]
    place = torch.arange(len(one)) - torch.searchsorted(one, one)
    kept = place < MOST
    rows[one[kept], place[kept]] = other[kept]
    apart[one[kept], place[kept]] = distance[kept]


def _usual(coarse: Tensor) -> float:
    """The median distance to the nearest neighbour, of all rows or of some spread evenly."""
    count = len(coarse)
    asked = torch.arange(count) if count <= ALL else torch.arange(ASKED) * count // ASKED
    least = torch.full((len(asked),), torch.inf)
    for start in range(0, count, OTHERS):
        others = coarse[start : start + OTHERS].float()
        norms = (others**2).sum(1)
        for place in range(0, len(asked), PART):
            rows = asked[place : place + PART]
            own = coarse[rows].float()
            squared = torch.addmm(norms, own, others.T, alpha=-2) + (own**2).sum(1)[:, None]
            squared[rows[:, None] == torch.arange(start, start + len(others))] = torch.inf
            least[place : place + PART] = least[place : place + PART].minimum(squared.amin(1))
    return float((least.clamp_min(0) / coarse.shape[1]).sqrt().median())


def _directions(coarse: Tensor) -> Tensor:
    """`(D, k)` orthonormal: along which rows differ most, as far as some of them tell; the widest first."""
    some = coarse[:: -(-len(coarse) // ASKED)].double()
    some = some - some.mean(0)
    vectors: Tensor = torch.linalg.eigh(some.T @ some).eigenvectors
    return vectors[:, -DIRECTIONS:].flip(1).float()


def folds(clusters: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> list[list[int]]:
    """The rows in `count` parts of about equal size; classes are spread over all, and copies stay together."""
    first = (clusters == torch.arange(len(clusters))).nonzero().flatten()
    shuffled = first[torch.randperm(len(first), generator=generator)]
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.zeros(len(clusters), dtype=torch.int64)
    fold[shuffled] = torch.arange(len(shuffled)) % count
    fold = fold[clusters]
    return [(fold == number).nonzero().flatten().tolist() for number in range(count)]


def _coarse(examples: ExampleSet) -> Tensor:
    """`(N, D)`: what images are on the grid; of many images of bytes in half precision, which is finer than a byte."""
    half = len(examples) > ALL and examples.pixels.dtype == torch.uint8
    whole = torch.empty(0)
    for start in range(0, len(examples), PART):
        pixels = examples.batch(range(start, min(start + PART, len(examples))))
        examples.ahead(range(start + PART, min(start + 2 * PART, len(examples))))
        if examples.image:
            size = (min(GRID, pixels.shape[2]), min(GRID, pixels.shape[3]))
            pixels = F.adaptive_avg_pool2d(pixels, size)
        flat = pixels.flatten(1).float()
        if not start:
            whole = torch.empty(len(examples), flat.shape[1], dtype=torch.float16 if half else torch.float32)
        whole[start : start + PART] = flat - 0.5 if half else flat
    return whole if half else _centred(whole)


def _centred(whole: Tensor) -> Tensor:
    """Differences of squares lose less when the mean image is gone."""
    return whole - whole.mean(0)
