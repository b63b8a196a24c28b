"""The rows of the report's three tables, as text: examples, neurons, layers."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from memaudit.findings import Finding, Neuron, Outcome, UnitRef
from memaudit.numbers import MISSING, interval, percent, points
from memaudit.report.words import MAX_MESSAGE, OUTCOMES, SYMBOLS, accepted, label, named, short
from memaudit.text import MAX_LENGTH, clean

if TYPE_CHECKING:
    from memaudit.report.document import Report


@dataclass(frozen=True)
class Link:
    """A name and the anchor on the page it leads to; no anchor where the page does not show the thing."""

    text: str
    anchor: str


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
    before: str
    after: str
    margins: str
    units: list[Link]
    cost: float | None
    cost_text: str
    cost_detail: str
    controls: list[tuple[str, str]]


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


def example_rows(report: Report, shown_units: frozenset[str] = frozenset()) -> Iterator[ExampleRow]:
    """The findings in the report's order; units link to the neurons in `shown_units` (anchors)."""
    settled = accepted(report)
    return (_example(report, finding, settled.get(finding.id, ""), shown_units) for finding in report.findings)


def _example(report: Report, finding: Finding, settled: str, shown: frozenset[str]) -> ExampleRow:
    example, typical, after = finding.example, finding.atypicality, finding.after
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
        p_value=f"p {typical.p_value:.3f}" if typical else "",
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
    detail = f"{percent(accuracy.after)} ({interval(accuracy.low, accuracy.high)})"
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
    """The first `limit` neurons, most shared first as the report lists them."""
    known = {finding.id for finding in report.findings}
    return [
        NeuronRow(
            anchor=unit_anchor(neuron),
            query=urlencode({"q": clean(f"{neuron.layer}:{neuron.index}")}),
            name=clean(f"{neuron.layer}:{neuron.index}"),
            kind=neuron.kind,
            erases=[Link(short(i), example_anchor(i) if i in known else "") for i in neuron.erases],
            reference=percent(neuron.reference_accuracy_after),
        )
        for neuron in report.neurons[:limit]
    ]


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
