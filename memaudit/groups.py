"""The flagged set as a group: shared units, the trade-off of cutting them together, and matched clean examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from memaudit.controls import Judge, matched_clean
from memaudit.data import ExampleSet
from memaudit.evaluate import margin
from memaudit.findings import CurvePoint, Finding, MatchedControls, Neuron, Outcome, UnitRef
from memaudit.intervals import bootstrap, tidy
from memaudit.localize import Search

ERASED = (Outcome.LOCALIZED, Outcome.ENTANGLED)
# Units whose own reference cost is measured, the most shared first.
NEURONS_MEASURED = 100
# Examples of either set per point of the trade-off curve.
CURVE_ROWS = 256
# Pairs grow with the square: past this many findings the mean overlap no longer moves.
OVERLAP_SETS = 1000

Tick = Callable[[int], None]


def neurons(findings: Sequence[Finding], judge: Judge, tick: Tick) -> list[Neuron]:
    """Every unit of an erased finding's set, the most shared first, with what its own ablation costs the reference."""
    serves: dict[UnitRef, list[str]] = {}
    for finding in sorted(findings, key=lambda f: f.id):
        for unit in finding.units if finding.outcome in ERASED else ():
            serves.setdefault(unit, []).append(finding.id)
    order = {site.layer: place for place, site in enumerate(judge.space.sites)}
    ranked = sorted(serves.items(), key=lambda item: (-len(item[1]), order[item[0].layer], item[0].index))
    result = []
    for place, (unit, ids) in enumerate(ranked):
        after = None
        if place < NEURONS_MEASURED:
            number = judge.space.number(unit.layer, unit.index, unit.kind)
            after = tidy(judge.reference_accuracy([number], str(unit)).after)
            tick(1)
        result.append(
            Neuron(layer=unit.layer, index=unit.index, kind=unit.kind, erases=ids, reference_accuracy_after=after)
        )
    return result


def trade_off(shared: Sequence[Neuron], judge: Judge, flagged: ExampleSet, fitted: Sequence[int]) -> list[CurvePoint]:
    """Flagged still fitted against reference accuracy, with the n most shared units ablated together."""
    numbers = [judge.space.number(n.layer, n.index, n.kind) for n in shared]
    if not numbers:
        return []
    sizes = sorted({0, len(numbers), *(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < len(numbers))})
    rows = list(fitted[:: max(1, -(-len(fitted) // CURVE_ROWS))])
    panel = list(judge.panel[:CURVE_ROWS])
    points = []
    for size in sizes:
        cut = [numbers[:size]]
        still = margin(judge.evaluator.logits(flagged, rows, cut, judge.space, judge.fill), flagged.labels[rows])
        right = margin(
            judge.evaluator.logits(judge.reference, panel, cut, judge.space, judge.fill), judge.reference.labels[panel]
        )
        points.append(CurvePoint(units=size, flagged_fitted=_share(still), reference_accuracy=_share(right)))
    return points


def matched(
    findings: Sequence[Finding],
    search: Search,
    judge: Judge,
    flagged: ExampleSet,
    rows: Sequence[int],
    margins: Tensor,
    reference_margins: Tensor,
    tick: Tick,
) -> MatchedControls | None:
    """The same search on clean examples: is needing few units special to the flagged ones?

    Args:
        rows: fitted flagged rows to match by label and margin.
        margins: of all flagged examples.
        reference_margins: of all reference examples.
    """
    picked = torch.tensor(rows, dtype=torch.int64)
    reference = judge.reference
    pairs = matched_clean(margins[picked], flagged.labels[picked], reference_margins, reference.labels)
    if not pairs:
        return None
    never = search.max_units + 1
    counts: dict[int, int] = {}
    for proposal in search.run(judge.evaluator, reference, [r for _, r in pairs]):
        counts[proposal.row] = len(proposal.cut) if proposal.erased else never
        tick(1)
    clean = [counts[r] for _, r in pairs]  # not in the order they finished, which the batch size decides
    needed = [len(f.units) if f.outcome in ERASED else never for f in findings if f.fitted]
    wins = [sum((c > n) + 0.5 * (c == n) for n in needed) / len(needed) for c in clean]
    low, high = bootstrap(wins, judge.seed)
    return MatchedControls(
        examples=len(clean),
        median_units=float(median(clean)),
        auc=tidy(sum(wins) / len(wins)),
        low=tidy(low),
        high=tidy(high),
    )


def overlap(sets: Sequence[Sequence[UnitRef]]) -> float | None:
    """Mean Jaccard index over pairs of unit sets; None for fewer than two."""
    groups = [frozenset(s) for s in sets][:OVERLAP_SETS]
    pairs = [len(a & b) / len(a | b) for i, a in enumerate(groups) for b in groups[:i] if a | b]
    return tidy(sum(pairs) / len(pairs)) if pairs else None


def _share(margins: Tensor) -> float:
    return tidy(float((margins > 0).float().mean()))
