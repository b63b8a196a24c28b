"""What the network says of examples whose labels it has not seen: its later layers, learned again from the others.

Relearning (Maini et al. 2023, section 3.3) cross-fitted: the examples are split in folds, and those of one fold are
asked of layers that were learned again from examples of the other folds. Everything from a depth on is put back: a
later layer that keeps its weights may still hold the label. What comes before is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memaudit.audits.memorization.relearned import ASKED, epochs_for, relearned
from memaudit.data.examples import ExampleSet
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import LayerGroup


def unseen(
    evaluator: Evaluator,
    examples: ExampleSet,
    group: LayerGroup,
    folds: Sequence[Sequence[int]],
    teachers: Tensor,
    most: int,
    seed: int,
    late: Callable[[], bool],
    *,
    mirror: bool = False,
) -> Tensor | None:
    """Class probabilities `(N, classes)` of each example from layers that were taught without its fold.

    Args:
        folds: rows, each in one; copies together.
        teachers: `(N,)` bool: whose labels may be shown.
        most: examples a fold's layers are taught with.
        late: asked before each fold; once it says so nothing more is measured.
        mirror: mirror images show the same classes.

    Returns:
        None when it became late.
    """
    said: Tensor | None = None
    for number, rows in enumerate(folds):
        if late():
            return None
        generator = generator_for(seed, "relearn", f"{group.layer} {number}")
        training = teachers_of(folds, number, teachers, most, generator)
        (found,) = relearned(
            evaluator, group, Panel(examples, training), [Panel(examples, rows)], generator=generator, mirror=mirror
        )
        if said is None:
            said = torch.zeros(len(examples), found.shape[1])
        said[list(rows)] = found
    return said


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
