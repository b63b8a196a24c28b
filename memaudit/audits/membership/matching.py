"""Which unseen examples a flagged one may be compared with: those that were drawn as it was.

A flagged example whose label is not its true one is compared with unseen examples of the same true class that are asked
for the same wrong label: any model finds a wrong label unlikely, whether it saw it or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.data import ExampleSet
from memaudit.engine.draws import generator_for
from memaudit.findings import Example

# Chance at which flagged labels that models without do not give are taken for wrong ones.
TELLING = 0.01

# True label, and the label that is asked for.
Kind = tuple[int, int]


@dataclass(frozen=True)
class Compared:
    """Flagged and unseen examples of the same kinds.

    Attributes:
        flagged, unseen: rows of either set.
        kinds: of the flagged rows, then of the unseen ones.
        left_out: how many flagged rows no unseen example is like.
    """

    flagged: list[int]
    unseen: list[int]
    kinds: list[Kind]
    left_out: int

    @property
    def labels(self) -> list[int]:
        """The label that each unseen row is asked for."""
        return [label for _, label in self.kinds[len(self.flagged) :]]

    @property
    def relabelled(self) -> int:
        """How many unseen examples are asked for a label that is not theirs."""
        return sum(true != label for true, label in self.kinds[len(self.flagged) :])


def looks_mislabelled(flagged: Sequence[Example], given: Tensor) -> tuple[int, int] | None:
    """How many flagged and unseen examples have a label that models without them do not give, where it is telling.

    A wrong label that nobody declared is compared with right ones. Whoever never saw it gives it other odds than those,
    and calibrated odds of another spread: of 200 simulated audits of clean models 43 said evidence. None where every
    true label is given, or where flagged labels are missed no more often than unseen ones.

    Args:
        given: `(n,)` bool, of the flagged examples, then of the unseen ones: models without give the label.
    """
    from scipy.stats import fisher_exact

    rows = [row for row, example in enumerate(flagged) if example.true_label is None]
    if not rows:
        return None
    own, others = given[rows], given[len(flagged) :]
    missed = int((~own).sum()), int((~others).sum())
    table = [[missed[0], len(own) - missed[0]], [missed[1], len(others) - missed[1]]]
    return missed if fisher_exact(table, "greater").pvalue <= TELLING else None


def kind_of(example: Example) -> Kind:
    """The example's true label, as far as it is known, and the one it was given."""
    return (example.label if example.true_label is None else example.true_label), example.label


def compared(flagged: ExampleSet, unseen: ExampleSet, seed: int) -> Compared:
    """Deal the unseen examples of each class out to the labels its flagged ones were given, in their proportion."""
    wanted: dict[int, Counter[int]] = {}
    for example in flagged.examples:
        true, label = kind_of(example)
        wanted.setdefault(true, Counter())[label] += 1
    dealt: dict[int, Kind] = {}
    given: Counter[Kind] = Counter()
    order = torch.randperm(len(unseen), generator=generator_for(seed, "kinds", "")).tolist()
    for row in order:
        true = unseen.examples[row].label
        counts = wanted.get(true)
        if counts:
            label = min(counts, key=lambda y, t=true, c=counts: ((given[t, y] + 0.5) / c[y], y))  # type: ignore[misc]
            given[true, label] += 1
            dealt[row] = (true, label)
    rows = [row for row, example in enumerate(flagged.examples) if given[kind_of(example)]]
    present = {kind_of(flagged.examples[row]) for row in rows}
    others = [row for row in sorted(dealt) if dealt[row] in present]
    kinds = [*(kind_of(flagged.examples[row]) for row in rows), *(dealt[row] for row in others)]
    return Compared(rows, others, kinds, len(flagged) - len(rows))
