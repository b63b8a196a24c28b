"""What the audits over time say of a layer, in one sentence and one word. No torch: it only reads what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from memaudit.findings import LayerVerdict, Retrain, RewindPoint
from memaudit.numbers import count, interval, percent

# A label "comes back" or "stays" for most examples, or it does not: the interval must leave one half on one side.
HALF = 0.5
# The reference survives a rewound layer when its accuracy falls by no more than this.
SURVIVES = 0.05

Verdict = tuple[LayerVerdict | None, str]


def verdict(retrain: Retrain | None, rewind: Sequence[RewindPoint]) -> Verdict:
    """Retraining decides where it ran, for it asks the stricter question; else rewinding; else nothing is said."""
    if retrain is not None:
        return of_retraining(retrain)
    return of_rewinding(rewind) if rewind else (None, "")


def of_retraining(found: Retrain) -> Verdict:
    """`redundant`: most flagged labels come back unseen; `critical`: they do not, and clean examples do."""
    start = f"Put back to {found.checkpoint} and retrained on {count(found.examples, 'reference example')} alone"
    back = f"{percent(found.flagged)} ({interval(found.low, found.high)}) of the flagged labels"
    unseen = f"{percent(found.matched)} of matched clean examples that were left out as well"
    if found.low > HALF:
        return LayerVerdict.REDUNDANT, f"{start}, {back} came back without being shown: other layers hold them."
    if not found.fitted:
        taken = f"{percent(found.reference)} of the reference is right, {percent(found.reference_before)} before"
        return LayerVerdict.UNDECIDED, (
            f"{start}, the layer did not fit the reference again within {count(found.budget, 'epoch')} ({taken}): that "
            f"{back} came back decides nothing."
        )
    if found.high >= HALF:
        return LayerVerdict.UNDECIDED, f"{start}, {back} came back: neither most of them nor few."
    if found.matched is not None and (found.matched_low is None or found.matched_low <= found.high):
        return LayerVerdict.UNDECIDED, (
            f"{start}, {back} came back, but {unseen} did no better: the layer holds what every example needs."
        )
    beside = "" if found.matched is None else f", while {unseen} did"
    return LayerVerdict.CRITICAL, f"{start}, the reference came back and only {back} did{beside}."


def of_rewinding(points: Sequence[RewindPoint]) -> Verdict:
    """At the earliest checkpoint that spares the reference: does the layer need what it learned since?"""
    *earlier, final = points
    for point in earlier:
        plain = point.reference >= final.reference - SURVIVES
        second = point.reference_recalibrated
        if not plain and (second is None or second < final.reference - SURVIVES):
            continue
        value, low, high, how = point.flagged, point.flagged_low, point.flagged_high, ""
        if not plain and point.flagged_recalibrated is not None:
            value, how = point.flagged_recalibrated, " and BatchNorm re-estimated"
            low = point.recalibrated_low or 0.0
            high = 1.0 if point.recalibrated_high is None else point.recalibrated_high
        start = f"Put back to {point.checkpoint}{how}, the layer spares the reference"
        kept = f"{percent(value)} ({interval(low, high)}) of the flagged labels"
        if low > HALF:
            return LayerVerdict.REDUNDANT, f"{start} and keeps {kept}: what it learned since is not needed for them."
        if high < HALF:
            return LayerVerdict.CRITICAL, f"{start} and keeps only {kept}: what it learned since holds the others."
        return LayerVerdict.UNDECIDED, f"{start} and keeps {kept}: neither most of them nor few."
    return LayerVerdict.UNDECIDED, "No earlier checkpoint of this layer spares the reference: nothing is decided."
