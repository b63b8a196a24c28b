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
# Rows compared with others at a time, and the most numbers that a part's comparison takes.
PART, CELLS = 512, 2**23
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

    Two images are no farther apart along a line than they are, so each is compared with those near it on the line along
    which the images differ most: every pair is found, and most are never looked at.
    """
    coarse = _coarse(examples)
    count, width = coarse.shape
    radius = SHARE * _usual(coarse)
    direction = _widest(coarse)
    along, order = torch.cat([part.float() @ direction for part in torch.split(coarse, PART)]).sort()
    reach = radius * width**0.5 + 1e-5 * float(along.abs().max())  # and what rounding takes away
    rows, apart = torch.full((count, MOST), -1), torch.full((count, MOST), torch.inf)
    start = 0
    while start < count:
        stop = min(start + PART, count)
        low = int(torch.searchsorted(along, along[start] - reach))
        high = int(torch.searchsorted(along, along[stop - 1] + reach, right=True))
        stop = min(stop, start + max(1, CELLS // (high - low)))
        own, others = order[start:stop], order[low:high]
        found = _apart(coarse, own, others).topk(min(MOST, len(others)), dim=1, largest=False)
        near = found.values <= radius
        rows[own, : near.shape[1]] = torch.where(near, others[found.indices], -1)
        apart[own, : near.shape[1]] = torch.where(near, found.values, torch.inf)
        start = stop
    most = max(1, int((rows >= 0).sum(1).max()))
    return Copies(rows[:, :most].clone(), apart[:, :most].clone())


def _apart(coarse: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Root mean square differences `(len(rows), len(others))`; infinite from a row to itself."""
    own, theirs = coarse[rows].float(), coarse[others].float()
    squared = (own**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * own @ theirs.T
    squared[rows[:, None] == others] = torch.inf
    return (squared.clamp_min(0) / coarse.shape[1]).sqrt()


def _usual(coarse: Tensor) -> float:
    """The median distance to the nearest neighbour, of all rows or of some spread evenly."""
    count = len(coarse)
    asked = torch.arange(count) if count <= ALL else torch.arange(ASKED) * count // ASKED
    others = torch.split(torch.arange(count), CELLS // PART)
    nearest = [
        torch.stack([_apart(coarse, rows, o).amin(1) for o in others]).amin(0) for rows in torch.split(asked, PART)
    ]
    return float(torch.cat(nearest).median())


def _widest(coarse: Tensor) -> Tensor:
    """The unit vector `(D,)` along which rows differ most, as far as some of them tell."""
    some = coarse[:: -(-len(coarse) // ASKED)].double()
    some = some - some.mean(0)
    vectors: Tensor = torch.linalg.eigh(some.T @ some).eigenvectors
    return vectors[:, -1].float()


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
    parts = []
    for start in range(0, len(examples), PART):
        pixels = examples.batch(range(start, min(start + PART, len(examples))))
        examples.ahead(range(start + PART, min(start + 2 * PART, len(examples))))
        if examples.image:
            size = (min(GRID, pixels.shape[2]), min(GRID, pixels.shape[3]))
            pixels = F.adaptive_avg_pool2d(pixels, size)
        flat = pixels.flatten(1).float()
        parts.append((flat - 0.5).half() if half else flat)
    whole = torch.cat(parts)
    return whole if half else _centred(whole)


def _centred(whole: Tensor) -> Tensor:
    """Differences of squares lose less when the mean image is gone."""
    return whole - whole.mean(0)
