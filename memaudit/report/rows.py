"""The rows of the report's three tables, as text: examples, units, layers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from memaudit.findings import Finding, Neuron, Outcome, UnitRef
from memaudit.numbers import MISSING, percent, points
from memaudit.report.words import MAX_MESSAGE, OUTCOMES, SYMBOLS, accepted, label, named, p_value, short
from memaudit.text import MAX_LENGTH, clean

if TYPE_CHECKING:
    from memaudit.report.document import Report


@dataclass(frozen=True)
class Link:
    """A name and the anchor on the page it leads to; no anchor where the page does not show the thing."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Near:
    """One of the nearest clean examples; `supports` says whether it has the flagged label."""

    example_id: str
    source: str
    label: str
    supports: bool


@dataclass(frozen=True)
class ExampleRow:
    """One flagged example; `accepted` is `waived`, `known` from the baseline, or empty, `reason` the waiver's."""

    anchor: str
    example_id: str
    short_id: str
    source: str
    label: str
    true_label: str
    outcome: Outcome
    word: str
    symbol: str
    memorized: bool
    accepted: str
    reason: str
    atypicality: float | None
    p_value: str
    nearest: list[Near]
    before: str
    after: str
    margins: str
    units: list[Link]
    cost: float | None
    cost_text: str
    cost_detail: str
    controls: list[tuple[str, str]]


@dataclass(frozen=True)
class Fold:
    """Examples with one outcome, folded away on the page; the rows are made as they are asked for."""

    anchor: str
    name: str
    count: int
    rows: Iterator[ExampleRow]


@dataclass(frozen=True)
class NeuronRow:
    """One unit, and the examples its cut helps to suppress; `query` is the page's filter that shows just those."""

    anchor: str
    query: str
    name: str
    kind: str
    erases: list[Link]
    reference: str


@dataclass(frozen=True)
class LayerRow:
    """One layer: how many cuts fall in it, against its share of all units that could be cut."""

    layer: str
    kind: str
    width: int
    used: int
    cuts: int
    share: float
    expected: float


def example_anchor(finding_id: str) -> str:
    """The fragment that leads to a finding."""
    return f"ex-{_slug(finding_id)}"


def unit_anchor(unit: UnitRef | Neuron) -> str:
    """The fragment that leads to a unit."""
    return f"unit-{_slug(unit.layer)}-{unit.index}"


def worst_first(report: Report) -> list[Finding]:
    """Memorized examples that nobody accepted, the accepted ones, the other fitted ones, and those not fitted.

    Within each, the label that the fewest clean examples support comes first, then the one the model is surest of.
    """
    settled = accepted(report)

    def place(finding: Finding) -> tuple[int, float, float, float]:
        typical = finding.atypicality
        kind = 0 if finding.memorized and finding.id not in settled else 1 if finding.memorized else 2
        p, score = (typical.p_value, typical.score) if typical else (1.0, 0.0)
        return kind + (not finding.fitted), p, -score, -finding.before.confidence

    return sorted(report.findings, key=place)


def example_rows(
    report: Report, findings: Iterable[Finding], shown_units: frozenset[str] = frozenset()
) -> Iterator[ExampleRow]:
    """One row for each of `findings`; units link to those in `shown_units` (anchors)."""
    settled = accepted(report)
    return (_example(report, finding, settled.get(finding.id, ""), shown_units) for finding in findings)


def folded(report: Report, findings: Sequence[Finding], shown_units: frozenset[str] = frozenset()) -> Iterator[Fold]:
    """`findings` by outcome, the memorized ones first; the order within each stays."""
    order = list(OUTCOMES)

    def kind(finding: Finding) -> tuple[bool, int]:
        return not finding.memorized, order.index(finding.outcome)

    counts = Counter(map(kind, findings))
    for (harmless, place), group in groupby(sorted(findings, key=kind), key=kind):
        outcome = order[place]
        name = f"{SYMBOLS[outcome]} {OUTCOMES[outcome][0]}"
        if not harmless or outcome is not Outcome.NOT_FITTED:
            name += ", not memorized" if harmless else ", memorized"
        anchor = f"fold-{outcome.value}{'' if harmless else '-memorized'}"
        yield Fold(anchor, name, counts[harmless, place], example_rows(report, group, shown_units))


def _example(report: Report, finding: Finding, settled: str, shown: frozenset[str]) -> ExampleRow:
    example, typical, after = finding.example, finding.estimate or finding.atypicality, finding.after
    cost, cost_text, cost_detail = _cost(finding)
    return ExampleRow(
        anchor=example_anchor(finding.id),
        example_id=example.id,
        short_id=short(finding.id),
        source=named(example),
        label=label(report, example.label),
        true_label="" if example.true_label is None else label(report, example.true_label),
        outcome=finding.outcome,
        word=OUTCOMES[finding.outcome][0],
        symbol=SYMBOLS[finding.outcome],
        memorized=finding.memorized,
        accepted=settled,
        reason=clean(report.gate.reasons.get(finding.id, ""), MAX_MESSAGE),
        atypicality=typical.score if typical else None,
        p_value=p_value(report, typical.p_value) if typical else "",
        nearest=[Near(n.id, named(n), label(report, n.label), n.label == example.label) for n in finding.nearest],
        before=label(report, finding.before.prediction),
        after=label(report, after.prediction) if after else "",
        margins=f"{percent(finding.before.confidence)} → {percent(after.confidence)}"
        if after
        else percent(finding.before.confidence),
        units=[_unit_link(unit, shown) for unit in finding.units],
        cost=cost,
        cost_text=cost_text,
        cost_detail=cost_detail,
        controls=_controls(finding),
    )


def _unit_link(unit: UnitRef, shown: frozenset[str]) -> Link:
    anchor = unit_anchor(unit)
    return Link(clean(unit), anchor if anchor in shown else "")


def _cost(finding: Finding) -> tuple[float | None, str, str]:
    accuracy = finding.reference_accuracy
    if accuracy is None:
        return None, MISSING, ""
    change = f"{points(accuracy.before, accuracy.after)} pts"
    detail = f"{points(accuracy.before, accuracy.low)} to {points(accuracy.before, accuracy.high)}"
    return accuracy.after - accuracy.before, change, detail


def _controls(finding: Finding) -> list[tuple[str, str]]:
    """Name and `hits/tries` of each control that was measured."""
    found = finding.controls
    if found is None:
        return []
    lines = [("random", f"{found.random.erased}/{found.random.draws}")]
    if found.augmented:
        lines.append(("copies", f"{found.augmented.erased}/{found.augmented.copies}"))
    if found.flagged_others:
        lines.append(("others", f"{found.flagged_others.lost}/{found.flagged_others.examples}"))
    return lines


def neuron_rows(report: Report, limit: int) -> list[NeuronRow]:
    """The first `limit` units, most shared first as the report lists them."""
    known = {finding.id for finding in report.findings}
    intact = next((f.reference_accuracy.before for f in report.findings if f.reference_accuracy), None)
    return [
        NeuronRow(
            anchor=unit_anchor(neuron),
            query=urlencode({"q": clean(f"{neuron.layer}:{neuron.index}")}),
            name=clean(f"{neuron.layer}:{neuron.index}"),
            kind=neuron.kind,
            erases=[Link(short(i), example_anchor(i) if i in known else "") for i in neuron.erases],
            reference=_alone(intact, neuron),
        )
        for neuron in report.neurons[:limit]
    ]


def _alone(intact: float | None, neuron: Neuron) -> str:
    """What one unit costs alone: all accuracies are of the examples set aside for costs."""
    after, low, high = neuron.reference_accuracy_after, neuron.low, neuron.high
    if intact is None or after is None:
        return MISSING
    between = "" if low is None or high is None else f" ({points(intact, low)} to {points(intact, high)})"
    return f"{points(intact, after)} pts{between}"


def layer_rows(report: Report) -> list[LayerRow]:
    """The layers in depth order. A unit cut for two examples is one used unit and two cuts."""
    cuts = Counter(unit.layer for finding in report.findings for unit in finding.units)
    used = Counter(layer for layer, _ in {(u.layer, u.index) for f in report.findings for u in f.units})
    total, width = sum(cuts.values()), sum(layer.width for layer in report.units.by_layer)
    return [
        LayerRow(
            layer=clean(found.layer),
            kind=found.kind,
            width=found.width,
            used=used[found.layer],
            cuts=cuts[found.layer],
            share=cuts[found.layer] / total if total else 0.0,
            expected=found.width / width,
        )
        for found in report.units.by_layer
    ]


def _slug(name: str) -> str:
    """`name` as part of an HTML id and URL fragment: other characters become their number, a long tail its hash."""
    if len(name) > MAX_LENGTH:
        name = name[:80] + "~" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"~{ord(match[0]):x}", name)
