"""Near-duplicates: an example must not be judged by its own copy.

Two images are near-duplicates when their pixels, on a coarse grid, are nearer to each other than a small share of the
distance at which images of the set usually have their nearest neighbour (the rule of cleanlab's Datalab, whose share
is used here).
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Rows compared with all others at a time.
PART = 512


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
    """The near-duplicates in a set; pixels are read in parts, and only a coarse grid of them is kept."""
    coarse = _coarse(examples)
    count = len(coarse)
    norms = (coarse**2).sum(1)
    most = min(MOST, count - 1)
    nearest, distances = [], []
    for start in range(0, count, PART):
        part = coarse[start : start + PART]
        squared = norms[start : start + PART, None] + norms - 2 * part @ coarse.T
        squared[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        found = squared.topk(most, dim=1, largest=False)
        nearest.append(found.indices)
        distances.append((found.values.clamp_min(0) / coarse.shape[1]).sqrt())
    rows, apart = torch.cat(nearest), torch.cat(distances)
    near = apart <= SHARE * apart[:, 0].median()
    return Copies(torch.where(near, rows, -1), torch.where(near, apart, torch.inf))


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
    parts = []
    for start in range(0, len(examples), PART):
        pixels = examples.batch(range(start, min(start + PART, len(examples))))
        examples.ahead(range(start + PART, min(start + 2 * PART, len(examples))))
        if examples.image:
            size = (min(GRID, pixels.shape[2]), min(GRID, pixels.shape[3]))
            pixels = F.adaptive_avg_pool2d(pixels, size)
        parts.append(pixels.flatten(1).float())
    return _centred(parts)


def _centred(parts: Sequence[Tensor]) -> Tensor:
    """Differences of squares lose less when the mean image is gone."""
    whole = torch.cat(list(parts))
    return whole - whole.mean(0)
