"""The findings cut by what they have in common: label, confidence, columns of the user's manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from memaudit.data.columns import groups
from memaudit.engine.answers import share
from memaudit.findings import Finding, Outcome, Slice
from memaudit.numbers import tidy

# Fewer examples than this are no group: the interval of a share of 9 is half of the scale wide.
SMALL = 10
# Groups of equal size by the model's confidence in the flagged label; fewer where each would be small.
DECILES = 10


def slices(findings: Sequence[Finding], class_names: Sequence[str] = ()) -> list[Slice]:
    """Every slice that is neither empty nor the whole, the largest gaps first; small ones after all others."""
    found = [*_by_label(findings, class_names), *_by_confidence(findings), *_by_column(findings)]
    return sorted(found, key=lambda s: (s.small, -abs(s.gap), s.by, s.value))


def _by_label(findings: Sequence[Finding], class_names: Sequence[str]) -> Iterable[Slice]:
    ordered = sorted(findings, key=lambda f: f.example.label)
    for label, group in groupby(ordered, key=lambda f: f.example.label):
        inside = list(group)
        if len(inside) < len(findings):
            yield _slice("label", class_names[label] if label < len(class_names) else str(label), inside, findings)


def _by_confidence(findings: Sequence[Finding]) -> Iterable[Slice]:
    """Tenths of the findings, the model's least sure first."""
    ordered = sorted(findings, key=lambda f: (f.before.confidence, f.id))
    parts = min(DECILES, len(ordered) // SMALL)
    for part in range(parts if parts > 1 else 0):
        inside = ordered[part * len(ordered) // parts : (part + 1) * len(ordered) // parts]
        low, high = inside[0].before.confidence, inside[-1].before.confidence
        yield _slice("confidence", f"{part + 1} of {parts}: {low:.3f} to {high:.3f}", inside, findings)


def _by_column(findings: Sequence[Finding]) -> Iterable[Slice]:
    for group in groups([f.example for f in findings]):
        inside = [f for f in findings if group.holds(f.example)]
        if 0 < len(inside) < len(findings):
            yield _slice(group.by, group.value, inside, findings)


def _slice(by: str, value: str, inside: Sequence[Finding], whole: Sequence[Finding]) -> Slice:
    memorized = sum(f.memorized for f in inside)
    others, theirs = len(whole) - len(inside), sum(f.memorized for f in whole) - memorized
    return Slice(
        by=by,
        value=value,
        count=len(inside),
        fitted=share(sum(f.fitted for f in inside), len(inside)),
        memorized=share(memorized, len(inside)),
        localized=share(sum(f.outcome is Outcome.LOCALIZED for f in inside), len(inside)),
        gap=tidy(memorized / len(inside) - (theirs / others if others else 0.0)),
        small=len(inside) < SMALL,
    )
