"""The audits over time as every view shows them: curves of the whole network, and one row a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.findings import LayerVerdict
from memaudit.numbers import MISSING, count, interval, number, percent
from memaudit.report.words import MAX_MESSAGE
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import LayerEvidence
    from memaudit.report.document import Report

VERDICTS: dict[LayerVerdict, tuple[str, str]] = {
    LayerVerdict.REDUNDANT: ("○", "the flagged labels are predicted without what this layer learned of them"),
    LayerVerdict.CRITICAL: ("●", "clean examples come back without it, the flagged labels do not"),
    LayerVerdict.UNDECIDED: ("◐", "the interval holds one half, or clean examples are lost as well"),
}
"""The symbol of each verdict, and what it means."""


@dataclass(frozen=True)
class JudgedLayer:
    """One layer: its verdict in words, and what retraining it gave."""

    layer: str
    parameters: int
    verdict: str
    symbol: str
    sentence: str
    flagged: str
    interval: str
    reference: str
    matched: str
    epochs: str


@dataclass(frozen=True)
class Moment:
    """One checkpoint of the network as a whole.

    Attributes:
        ratio, matched_ratio: norm of the summed gradient per flagged (matched) example over that per reference one.
        cosine, matched_cosine: with the reference gradient.
    """

    checkpoint: str
    ratio: float | None
    matched_ratio: float | None
    cosine: float | None
    matched_cosine: float | None


def judged_layers(report: Report) -> list[JudgedLayer]:
    """The layers in depth order."""
    return [_evidence(layer) for layer in report.layers]


def _evidence(layer: LayerEvidence) -> JudgedLayer:
    found = layer.retrain
    return JudgedLayer(
        layer=clean(layer.layer),
        parameters=layer.parameters,
        verdict=layer.verdict.value if layer.verdict else MISSING,
        symbol=VERDICTS[layer.verdict][0] if layer.verdict else "",
        sentence=clean(layer.sentence, MAX_MESSAGE),
        flagged=percent(found.flagged) if found else MISSING,
        interval=interval(found.low, found.high) if found else "",
        reference=percent(found.reference) if found else MISSING,
        matched=percent(found.matched) if found else MISSING,
        epochs=number(len(found.epochs) - 1) if found else MISSING,
    )


def moments(report: Report) -> list[Moment]:
    """Gradients of the whole network at each checkpoint: the layers' put together again."""
    layers = [layer for layer in report.layers if layer.gradients]
    if not layers:
        return []
    return [_moment(report, layers, at) for at in range(min(len(layer.gradients) for layer in layers))]


def _moment(report: Report, layers: Sequence[LayerEvidence], at: int) -> Moment:
    points = [(layer.parameters, layer.gradients[at]) for layer in layers]
    squares = {
        "flagged": sum(n * p.flagged**2 for n, p in points),
        "reference": sum(n * p.reference**2 for n, p in points),
        "matched": sum(n * (p.matched or 0.0) ** 2 for n, p in points),
    }

    def cosine(name: str, dots: float) -> float | None:
        size = (squares[name] * squares["reference"]) ** 0.5
        return max(-1.0, min(1.0, dots / size)) if size > 0 else None

    def ratio(name: str) -> float | None:
        """Every layer has the same numbers of examples, so any layer's ratio gives the factor between them."""
        for layer_number, p in points:
            own = p.ratio if name == "flagged" else p.matched_ratio
            norm = p.flagged if name == "flagged" else p.matched
            if layer_number and own and norm and p.reference and squares["reference"] > 0:
                factor = own / (norm / p.reference)
                return float(factor * (squares[name] / squares["reference"]) ** 0.5)
        return None

    dots = sum(n * p.flagged * p.reference * (p.cosine or 0.0) for n, p in points)
    clean_dots = sum(n * (p.matched or 0.0) * p.reference * (p.matched_cosine or 0.0) for n, p in points)
    return Moment(
        checkpoint=clean(points[0][1].checkpoint),
        ratio=ratio("flagged"),
        matched_ratio=ratio("matched"),
        cosine=cosine("flagged", dots),
        matched_cosine=cosine("matched", clean_dots),
    )


def summary(report: Report) -> str:
    """Which layers hold the flagged labels, in one sentence; empty where no layer was judged."""
    judged = [layer for layer in report.layers if layer.verdict]
    if not judged:
        return ""
    parts = []
    for verdict, words in (
        (LayerVerdict.CRITICAL, "critical for the flagged labels"),
        (LayerVerdict.REDUNDANT, "redundant for them"),
        (LayerVerdict.UNDECIDED, "undecided"),
    ):
        amount = sum(layer.verdict is verdict for layer in judged)
        parts.append(f"{amount} {words}")
    return f"Of {count(len(judged), 'layer group')}, {', '.join(parts[:-1])} and {parts[-1]}."


def learning(report: Report, quote: Callable[[object], str] = clean) -> str:
    """When flagged and reference examples are learned, in one or two sentences; `quote` prints outside strings."""
    learned = [f.learning.learned for f in report.findings if f.learning and f.fitted]
    if not report.series or not learned:
        return ""
    order = {point.checkpoint: n for n, point in enumerate(report.series)}
    places = sorted(order[name] for name in learned if name in order)
    if not places:
        return ""
    half = quote(report.series[places[(len(places) - 1) // 2]].checkpoint)
    base = report.series[-1].reference or 0.0
    early = next((p for p in report.series if (p.reference or 0.0) >= 0.9 * base), report.series[-1])
    text = f"Half of the fitted flagged labels are predicted at every checkpoint from {half} on"
    text += f"; nine tenths of the final reference accuracy is reached by {quote(early.checkpoint)}."
    if report.summary.learning_auroc is not None:
        share = percent(report.summary.learning_auroc)
        who = "A fitted flagged example", "a fitted reference example"
        if not report.summary.learning_reference:  # a report of an older version, which compared all of them
            who = "A flagged example", "a reference example"
        text += f" {who[0]} is learned later than {who[1]} in {share} of pairs."
    return text


def retraining(report: Report, quote: Callable[[object], str] = clean) -> str:
    """How the layers were retrained; empty where they were not. `quote` prints outside strings."""
    found = next((layer.retrain for layer in report.layers if layer.retrain), None)
    if found is None:
        return ""
    return (
        f"Each layer is put back to {quote(found.checkpoint)} and trained alone, all else frozen, on "
        f"{count(found.examples, 'reference example')} until the reference is fitted again: at most "
        f"{count(found.budget, 'epoch')} of AdamW at a rate of {found.rate:g}, {count(len(found.seeds), 'seed')}. "
        "The flagged labels are never shown."
    )
