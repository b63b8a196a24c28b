"""The flagged set as a group: shared units, the trade-off of cutting them together, and matched clean examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from memaudit.audits.localize.controls import NEAR, Judge
from memaudit.audits.localize.cost import settle_costs
from memaudit.audits.localize.search import Search, Searching
from memaudit.audits.panels import matched_clean
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.findings import CurvePoint, MatchedControls, Neuron, Outcome, Stability, UnitRef
from memaudit.intervals import bootstrap
from memaudit.numbers import tidy

ERASED = (Outcome.LOCALIZED, Outcome.ENTANGLED)
# Examples of either set per point of the trade-off curve.
CURVE_ROWS = 128
# Examples among those not expected to change that a unit's own cost is measured on, beside all others. With the few of
# a finding's cut sixteen units of a ViT all seemed to cost 4.4 points: they do 0.2 to 5.5.
OWN_ROWS = 32
# Pairs grow with the square: past this many findings the mean overlap no longer moves.
OVERLAP_SETS = 1000

Tick = Callable[[int], None]


class Found(Protocol):
    """What is asked of one example that was searched; a `findings.Finding` will do."""

    @property
    def id(self) -> str:
        """The example's id."""

    @property
    def fitted(self) -> bool:
        """Whether the network predicts its label."""

    @property
    def outcome(self) -> Outcome:
        """The outcome of its search."""

    @property
    def units(self) -> list[UnitRef]:
        """The units that the search cut."""


def neurons(findings: Sequence[Found], judge: Judge, most: int, tick: Tick) -> list[Neuron]:
    """Every unit of a suppressed finding's set, the most shared first; for `most` of them what each costs alone."""
    serves: dict[UnitRef, list[str]] = {}
    for finding in sorted(findings, key=lambda f: f.id):
        for unit in finding.units if finding.outcome in ERASED else ():
            serves.setdefault(unit, []).append(finding.id)
    order = {site.layer: place for place, site in enumerate(judge.space.sites)}
    ranked = sorted(serves.items(), key=lambda item: (-len(item[1]), order[item[0].layer], item[0].index))
    numbers = [judge.space.number(unit.layer, unit.index, unit.kind) for unit, _ in ranked[:most]]
    closer = replace(judge, at_risk=len(judge.panel), near=NEAR, at_random=max(OWN_ROWS, judge.at_random))
    costs = closer.together(
        [closer.reference_accuracy([n], str(unit)) for n, (unit, _) in zip(numbers, ranked, strict=False)]
    )
    tick(len(costs))
    known = [(c.after, c.low, c.high) for c in settle_costs(costs)]
    unknown = [(None, None, None)] * (len(ranked) - len(known))
    return [
        Neuron(
            layer=unit.layer,
            index=unit.index,
            kind=unit.kind,
            erases=ids,
            reference_accuracy_after=after,
            low=low,
            high=high,
        )
        for (unit, ids), (after, low, high) in zip(ranked, [*known, *unknown], strict=True)
    ]


def trade_off(shared: Sequence[Neuron], judge: Judge, flagged: ExampleSet, fitted: Sequence[int]) -> list[CurvePoint]:
    """Flagged still fitted against reference accuracy, with the n most shared units ablated together."""
    numbers = [judge.space.number(n.layer, n.index, n.kind) for n in shared]
    if not numbers:
        return []
    sizes = sorted({len(numbers), *(n for n in (1, 4, 16, 64, 256) if n < len(numbers))})
    rows = list(fitted[:: max(1, -(-len(fitted) // CURVE_ROWS))])
    panel = list(judge.panel[:CURVE_ROWS])
    intact = _share(judge.population.margins[: len(panel)])
    counts = {"flagged_examples": len(rows), "reference_examples": len(panel)}
    points = [CurvePoint(units=0, flagged_fitted=1.0, reference_accuracy=intact, **counts)]
    cuts = [numbers[:size] for size in sizes]
    still, right = (_under(judge, examples, own, cuts) for examples, own in ((flagged, rows), (judge.reference, panel)))
    for size, left, accuracy in zip(sizes, still, right, strict=True):
        points.append(CurvePoint(units=size, flagged_fitted=left, reference_accuracy=accuracy, **counts))
    return points


def _under(judge: Judge, examples: ExampleSet, rows: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[float]:
    """The share of the labels of `rows` that are predicted under each of `cuts`; all are asked in one pass."""
    every = [row for _ in cuts for row in rows]
    own = [list(cut) for cut in cuts for _ in rows]
    margins = margin(judge.evaluator.logits(examples, every, own, judge.space, judge.fill), examples.labels[every])
    return [_share(part) for part in torch.split(margins, len(rows))]


def matched_controls(
    findings: Sequence[Found],
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
    never = search.max_units + 1
    needed = [len(f.units) if f.outcome in ERASED else never for f in findings if f.fitted]
    if not pairs or not needed:  # a time limit may leave nothing to compare with
        return None
    counts: dict[int, int] = {}
    engine, evaluator = judge.evaluator.engine, judge.evaluator
    for row, proposal in engine.each(evaluator, Searching(search, reference), [r for _, r in pairs]):
        counts[row] = len(proposal.cut) if proposal.erased else never
        tick(1)
    clean = [counts[r] for _, r in pairs]  # not in the order they finished, which the batch size decides
    wins = [sum((c > n) + 0.5 * (c == n) for n in needed) / len(needed) for c in clean]
    low, high = bootstrap(wins, judge.seed)
    return MatchedControls(
        examples=len(clean),
        median_units=float(median(clean)),
        auc=tidy(sum(wins) / len(wins)),
        low=tidy(low),
        high=tidy(high),
    )


def stability(
    searches: Mapping[int, Search], judge: Judge, flagged: ExampleSet, cuts: Mapping[int, Sequence[int]], tick: Tick
) -> Stability:
    """How alike the unit sets are that other seeds find.

    Args:
        searches: by seed, the search with its risk predicted on the reference examples which that seed draws.
        cuts: by row, what this run found for the suppressed examples.
    """
    alike: dict[int, list[float]] = {row: [] for row in cuts}
    for search in searches.values():
        engine, evaluator = judge.evaluator.engine, judge.evaluator
        for row, proposal in engine.each(evaluator, Searching(search, flagged), list(cuts)):
            alike[row].append(_jaccard(frozenset(proposal.cut), frozenset(cuts[row])))
            tick(1)
    means = [sum(values) / len(values) for values in alike.values() if values]
    low, high = bootstrap(means, judge.seed)
    return Stability(
        seeds=list(searches),
        examples=len(means),
        jaccard=tidy(sum(means) / len(means)) if means else None,
        low=tidy(low) if means else None,
        high=tidy(high) if means else None,
    )


def overlap(sets: Sequence[Sequence[UnitRef]]) -> float | None:
    """Mean Jaccard index over pairs of unit sets; None for fewer than two."""
    groups = [frozenset(s) for s in sets][:OVERLAP_SETS]
    pairs = [_jaccard(a, b) for i, a in enumerate(groups) for b in groups[:i] if a | b]
    return tidy(sum(pairs) / len(pairs)) if pairs else None


def _jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    return len(a & b) / len(a | b)


def _share(margins: Tensor) -> float:
    return tidy(float(predicted(margins).float().mean()))
