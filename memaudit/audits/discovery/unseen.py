"""What the network says of examples whose labels it has not seen: its later layers, learned again from the others.

Relearning (Maini et al. 2023, section 3.3) cross-fitted: the examples are split in folds, and those of one fold are
asked of layers that were learned again from examples of the other folds. Everything from a depth on is put back: a
later layer that keeps its weights may still hold the label. What comes before is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Tensor

from memaudit.audits.memorization.relearned import ASKED, epochs_for, relearned
from memaudit.data.examples import ExampleSet
from memaudit.data.wide import Wide, slices, wide
from memaudit.engine.draws import generator_for
from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import LayerGroup


@dataclass(frozen=True)
class Unseen(Work[Wide]):
    """Class probabilities `(rows of the fold, classes)` of each fold, from layers that were taught without it.

    Its numbers are `len(folds) * group + fold`.

    Attributes:
        folds: rows, each in one; copies together.
        teachers: `(N,)` bool: whose labels may be shown.
        most: examples a fold's layers are taught with.
        deadline: seconds since the epoch; no further fold is begun after it.
        mirror: mirror images show the same classes.
    """

    examples: ExampleSet
    groups: Sequence[LayerGroup]
    folds: Sequence[Sequence[int]]
    teachers: Tensor
    most: int
    seed: int
    deadline: float = float("inf")
    mirror: bool = False
    alone: ClassVar[bool] = True

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, Wide]]:
        """As `Work`."""
        for place in rows:
            if time.time() > self.deadline:
                return
            number, fold = divmod(place, len(self.folds))
            group = self.groups[number]
            generator = generator_for(self.seed, "relearn", f"{group.layer} {fold}")
            training = teachers_of(self.folds, fold, self.teachers, self.most, generator)
            (found,) = relearned(
                evaluator,
                group,
                Panel(self.examples, training),
                [Panel(self.examples, self.folds[fold])],
                generator=generator,
                mirror=self.mirror,
            )
            yield place, found

    def plain(self, found: Wide) -> Tensor:
        """As `Work.plain`."""
        return found[:]


def unseen(evaluator: Evaluator, work: Unseen) -> list[Wide]:
    """Class probabilities `(N, classes)` of all examples, one for each group of layers; fewer where time ran out."""
    said: dict[int, Wide] = {}
    missing = [len(work.folds)] * len(work.groups)
    for place, found in evaluator.engine.each(evaluator, work, range(len(work.groups) * len(work.folds))):
        number, fold = divmod(place, len(work.folds))
        if number not in said:
            said[number] = wide(len(work.examples), found.shape[1])
        own = torch.tensor(work.folds[fold])
        for rows in slices(*found.shape):
            said[number][own[rows]] = found[rows]
        missing[number] -= 1
    whole = list(takewhile(lambda number: not missing[number], range(len(work.groups))))
    return [said[number] for number in whole]


def teachers_of(
    folds: Sequence[Sequence[int]], number: int, teachers: Tensor, most: int, generator: torch.Generator
) -> list[int]:
    """Rows of the other folds whose labels may be shown, `most` of them drawn."""
    other = torch.tensor([row for n, fold in enumerate(folds) if n != number for row in fold])
    other = other[teachers[other]]
    return other[torch.randperm(len(other), generator=generator)[:most]].sort().values.tolist()


def effort(folds: Sequence[Sequence[int]], teachers: Tensor, most: int) -> int:
    """Examples that run through the network for one group, each as often as it does."""
    taught = [
        min(most, sum(int(teachers[row]) for n, f in enumerate(folds) if n != number for row in f))
        for number in range(len(folds))
    ]
    return sum(epochs_for(n) * n + min(ASKED, epochs_for(n)) * len(f) for n, f in zip(taught, folds, strict=True))
