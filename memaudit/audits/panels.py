"""Which rows an audit runs: fitted flagged examples, clean ones matched to them, other reference examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.data import ExampleSet
from memaudit.engine.answers import predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.numbers import tidy
from memaudit.settings import Profile


@dataclass(frozen=True)
class Panels:
    """The rows of the audits over time.

    Attributes:
        flagged: fitted flagged examples.
        matched: clean ones of the same labels and nearest margins; may be empty.
        reference: other reference examples.
        training: what a layer is retrained on: of all reference examples that are nobody's match.
    """

    flagged: Panel
    matched: Panel
    reference: Panel
    training: Panel

    @property
    def by_name(self) -> Mapping[str, Panel]:
        """Those that are run at every checkpoint and hold a row."""
        named = {"flagged": self.flagged, "matched": self.matched, "reference": self.reference}
        return {name: panel for name, panel in named.items() if len(panel)}


def drawn_panels(
    flagged: ExampleSet,
    reference: ExampleSet,
    flagged_margins: Tensor,
    reference_margins: Tensor,
    profile: Profile,
    seed: int,
) -> Panels:
    """The panels of `profile`'s sizes."""
    fitted = [int(row) for row in predicted(flagged_margins).nonzero().flatten()]
    rows = drawn(fitted, profile.flagged_rows, seed, "flagged")
    matched = matched_rows(rows, flagged.labels, flagged_margins, reference.labels, reference_margins)
    others = sorted(set(range(len(reference))) - set(matched))
    if not others:  # every reference example is some flagged one's match
        matched, others = [], list(range(len(reference)))
    return Panels(
        flagged=Panel(flagged, rows),
        matched=Panel(reference, matched),
        reference=Panel(reference, drawn(others, profile.reference_rows, seed, "reference")),
        training=Panel(reference, drawn(others, profile.retrain_rows, seed, "retrain")),
    )


def drawn(rows: Sequence[int], most: int, seed: int, purpose: str) -> list[int]:
    """At most `most` of `rows`, in order."""
    order = torch.randperm(len(rows), generator=generator_for(seed, "over time", purpose)).tolist()
    return sorted(rows[i] for i in order[:most])


def matched_rows(
    rows: Sequence[int], labels: Tensor, margins: Tensor, reference_labels: Tensor, reference_margins: Tensor
) -> list[int]:
    """The reference rows matched to the flagged `rows`, in order."""
    pairs = matched_clean(margins[rows], labels[rows], reference_margins, reference_labels)
    return sorted(row for _, row in pairs)


def matched_clean(
    margins: Tensor, labels: Tensor, reference_margins: Tensor, reference_labels: Tensor
) -> list[tuple[int, int]]:
    """Pairs `(flagged row, reference row)`: an unused fitted reference example, same label, nearest margin."""
    pairs: list[tuple[int, int]] = []
    free = predicted(reference_margins)
    for row in range(len(labels)):
        gaps = (
            (reference_margins - margins[row]).abs().masked_fill(~(free & (reference_labels == labels[row])), torch.inf)
        )
        best = int(gaps.argmin()) if len(gaps) else -1
        if best >= 0 and torch.isfinite(gaps[best]):
            free[best] = False
            pairs.append((row, best))
    return pairs


def mean_or_none(values: Tensor) -> float | None:
    """The mean, or None of nothing."""
    return tidy(float(values.float().mean())) if len(values) else None
