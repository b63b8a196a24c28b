"""The report as one HTML page that needs no network, no JavaScript to be read, and no trust in the report's strings."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from memaudit.numbers import interval, percent
from memaudit.report import (
    charts,
    counterfactual,
    erasure,
    figures,
    glossary,
    json,
    opening,
    pages,
    pictures,
    story,
    timeline,
)
from memaudit.report.rows import LayerRow, example_rows, folded, layer_rows, neuron_rows, worst_first
from memaudit.report.words import ACCEPTED, OUTCOMES, SYMBOLS, accepted
from memaudit.text import clean

if TYPE_CHECKING:
    from markupsafe import Markup

    from memaudit.report.document import Report

# A longer table of units helps nobody, and all of them are in the JSON.
MAX_NEURONS = 50
MAX_PLAIN_JSON = 64_000
# Slices shown; all are in the JSON.
MAX_SLICES = 24


def render(report: Report, thumbnails: Mapping[str, bytes] | None = None) -> str:
    """The page.

    Args:
        report: what to show.
        thumbnails: PNG bytes by example id; those that are no PNG, or past the page's budget, are counted and left out.
    """
    return "".join(parts(report, thumbnails))


def parts(report: Report, thumbnails: Mapping[str, bytes] | None = None) -> Iterator[str]:
    """What `render` gives, piece by piece: of many rows only a few are held."""
    data = _inline_json(report)
    if not thumbnails:
        return _page(report, data, {}, 0)
    size = sum(len(part.encode()) for part in _page(report, data, {}, 0))
    shown = pictures.data_urls(report, thumbnails, pages.MAX_PAGE - size)
    wanted = {f.example.id for f in report.findings} & set(thumbnails)
    return _page(report, data, shown, len(wanted - set(shown)))


def _page(report: Report, data: Markup, shown: Mapping[str, Markup], left_out: int) -> Iterator[str]:
    style, script = pages.own("page.css"), pages.own("page.js")
    neurons = neuron_rows(report, MAX_NEURONS)
    anchors = frozenset(row.anchor for row in neurons)
    layers = layer_rows(report)
    settled = accepted(report)
    ordered = worst_first(report)
    return pages.stream(
        "page.html.jinja",
        policy=pages.content_policy(style, script, bool(shown)),
        style=style,
        script=script,
        report=report,
        data=data,
        state=story.state(report),
        story=story,
        figures=figures,
        opening=opening,
        glossary=glossary,
        words={outcome: (*OUTCOMES[outcome], SYMBOLS[outcome]) for outcome in OUTCOMES},
        worst=list(example_rows(report, [f for f in ordered[: pictures.LARGE] if f.memorized], anchors)),
        rows=example_rows(report, ordered[: pictures.OPEN], anchors),
        folds=folded(report, ordered[pictures.OPEN :], anchors),
        accepted=Counter(settled[finding.id] for finding in report.findings if finding.id in settled),
        accepted_words=ACCEPTED,
        pictures=shown,
        pictures_left_out=left_out,
        slices=report.slices[:MAX_SLICES],
        neurons=neurons,
        layers=layers,
        bars=_bars(layers),
        curve=_curve(report),
        timeline=timeline,
        erasure=erasure,
        counterfactual=counterfactual,
        heat=_heat(report),
        learned=_learned(report),
        gradients=_gradients(report),
    )


def embed(report: Report) -> str:
    """The page in an `iframe`: its style and script stay inside, and all it may do is run, copy and download."""
    from markupsafe import Markup

    return str(
        Markup(
            '<iframe title="memaudit report" width="100%" height="720" frameborder="0" loading="lazy"'
            ' sandbox="allow-scripts allow-downloads" allow="clipboard-write" srcdoc="{}"></iframe>'
        ).format(render(report))
    )


def _inline_json(report: Report) -> Markup:
    """The report itself, or `{"gzip": base64}` of it where it would outgrow the page."""
    from markupsafe import Markup

    text, size = [], 0
    for part in json.compact(report, inline=True):
        text.append(part)
        size += len(part)
        if size > MAX_PLAIN_JSON:
            break
    else:
        return Markup("".join(text))  # noqa: S704
    packed = BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.writelines(part.encode() for part in json.compact(report))
    return Markup(json.encode({"gzip": base64.b64encode(packed.getvalue()).decode()}, inline=True))  # noqa: S704


def _bars(layers: list[LayerRow]) -> list[Markup]:
    most = max((max(row.share, row.expected) for row in layers), default=0.0)
    return [charts.bar(row.share, row.expected, most) for row in layers]


def _curve(report: Report) -> Markup | None:
    curve = report.groups.curve
    if len(curve) < 2:
        return None
    flagged = [(point.units, point.flagged_fitted) for point in curve]
    intact = curve[0].reference_accuracy or 1.0
    reference = [(point.units, min(1.0, point.reference_accuracy / intact)) for point in curve]
    return charts.rates(
        "Flagged examples still fitted and share of the reference accuracy kept, by the number of shared units cut",
        "most shared units cut together",
        [
            charts.Line("flagged", flagged),
            charts.Line("reference", reference, square=True),
        ],
    )


def _learned(report: Report) -> Markup | None:
    """Accuracy of the whole network along the series."""
    if len(report.series) < 2:
        return None
    names = [clean(point.checkpoint, 24) for point in report.series]

    def line(style: str, square: bool = False) -> charts.Line:
        values = [(n, getattr(point, style)) for n, point in enumerate(report.series)]
        return charts.Line(style, [(n, v) for n, v in values if v is not None], square)

    title = "Flagged labels, reference and matched clean examples predicted at each checkpoint"
    return charts.course(title, names, [line("flagged"), line("reference", square=True), line("matched")])


def _gradients(report: Report) -> tuple[Markup, Markup] | None:
    moments = timeline.moments(report)
    if len(moments) < 2:
        return None
    names = [clean(moment.checkpoint, 24) for moment in moments]

    def lines(flagged: str, matched: str) -> list[charts.Line]:
        found = []
        for style, key in (("flagged", flagged), ("matched", matched)):
            values = [(n, getattr(moment, key)) for n, moment in enumerate(moments)]
            found.append(charts.Line(style, [(n, v) for n, v in values if v is not None]))
        return found

    norms = lines("ratio", "matched_ratio")
    return (
        charts.multiples("Gradient norm per example over that of a reference example", names, norms),
        charts.cosines("Cosine with the reference gradient", names, lines("cosine", "matched_cosine")),
    )


@dataclass(frozen=True)
class Heat:
    """One heat map: `cells[layer][checkpoint]` is the text, its shade 0 to 9 and what it says in full."""

    name: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, int, str]]]]


def _heat(report: Report) -> list[Heat]:
    """Shares of flagged and drawn reference examples by layer and checkpoint; then with BatchNorm re-estimated."""
    layers = [layer for layer in report.layers if layer.rewind]
    if not layers:
        return []
    columns = [clean(point.checkpoint, 40) for point in layers[0].rewind]
    maps = []
    for name, key in (
        ("Flagged labels still predicted", "flagged"),
        ("Drawn reference examples still right", "reference"),
        ("Flagged, BatchNorm re-estimated", "flagged_recalibrated"),
        ("Drawn reference, BatchNorm re-estimated", "reference_recalibrated"),
    ):
        rows = []
        for layer in layers:
            cells = []
            for point in layer.rewind:
                value = getattr(point, key)
                full = f"{clean(layer.layer)} at {clean(point.checkpoint)}: {percent(value)}"
                if key == "flagged":
                    full += f" ({interval(point.flagged_low, point.flagged_high)})"
                cells.append(("", 0, full) if value is None else (f"{100 * value:.0f}", min(9, int(10 * value)), full))
            rows.append((clean(layer.layer), cells))
        if any(text for _, cells in rows for text, _, _ in cells):
            maps.append(Heat(name, columns, rows))
    return maps
