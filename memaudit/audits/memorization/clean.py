"""What flagged examples are compared with: clean examples, scored as they are by each kind of evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.atypicality import Neighbours
from memaudit.audits.context import Context
from memaudit.audits.memorization.parts import Calibration, Part
from memaudit.engine.answers import confidence, predicted
from memaudit.engine.evaluator import Panel

# What a clean example that the network mispredicts counts in the calibration. Had it been trained on, the network would
# predict it, and most such examples would look less memorized than they do. With validation images as the reference,
# 0.15 to 0.25 called as many true labels as clean training images did.
HARD = 0.2


@dataclass(frozen=True)
class Clean:
    """Clean examples that are scored as the flagged ones are.

    Attributes:
        rows: of the reference `(n,)`.
        labels: their own `(n,)`.
        learned: the labels that the network gives them `(n,)`.
        doubt: `(n,)`: 1 - the network's probability of those.
        others: other labels, drawn `(n,)`.
        weight: `(n,)`, what each counts: 1 where the network predicts its label, else `HARD`.
    """

    rows: Tensor
    labels: Tensor
    learned: Tensor
    doubt: Tensor
    others: Tensor
    weight: Tensor

    @property
    def known(self) -> Tensor:
        """`(n,)` bool: the network predicts its label."""
        return self.labels == self.learned

    def calibration(self, own: Tensor, given: Tensor) -> Calibration:
        """What p-values compare with, from the scores `(n,)` of their own and of the given labels."""
        return Calibration(own, self.weight, given, self.doubt, ~self.known)


def clean_examples(context: Context, found: Neighbours) -> Clean:
    """As many of the reference as the profile scores, drawn as neighbours were."""
    rows = found.rows[: context.profile.relearn_rows]
    labels = context.reference.labels[rows]
    known = predicted(context.reference_margins[rows])
    if int(known.sum()) < 2:  # nothing that the model predicts: every clean example has to do
        known = torch.ones_like(known)
    logits = context.reference_logits[rows]
    learned = torch.where(known, labels, logits.argmax(1))
    weight = torch.where(learned == labels, 1.0, HARD)
    return Clean(rows, labels, learned, 1 - confidence(logits, learned), found.others[: len(rows)], weight)


def everybody(context: Context) -> Panel:
    """The flagged examples, without memorizing units of their own, as the reference runs: they would give the label."""
    return Panel(context.flagged.unnumbered(), range(len(context.flagged)))


@dataclass(frozen=True)
class PartScores:
    """One kind of evidence on everybody: 1 - the probability of labels by what never saw them.

    Attributes:
        flagged: `(N,)`.
        own, given, other: `(n,)` of the clean examples' own labels, of those the network gives them, and of others.
        once: `own` and `given` as the first relearning alone has them, where more are averaged.
    """

    name: str
    flagged: Tensor
    own: Tensor
    given: Tensor
    other: Tensor
    once: tuple[Tensor, Tensor] | None = None

    def part(self, clean: Clean, doubt: Tensor) -> Part:
        """As a part that is calibrated on the clean examples.

        Args:
            doubt: `(N,)` 1 - the network's probability of each flagged label.
        """
        return Part(self.name, self.flagged, doubt, clean.calibration(self.own, self.given))

    def trial(self, clean: Clean, planted: Tensor, doubt: Tensor) -> Part:
        """The same of labels that were planted; `planted` and `doubt` `(K,)`."""
        own, given = self.once or (self.own, self.given)
        return Part(self.name, planted, doubt, clean.calibration(own, given))
