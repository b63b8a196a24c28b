"""The report as one HTML page that needs no network, no JavaScript to be read, and no trust in the report's strings."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from typing import TYPE_CHECKING, Any

from memaudit.numbers import MISSING, count, interval, percent, points
from memaudit.report import charts, erasure, glossary, json, opening, pictures, story, timeline
from memaudit.report.rows import LayerRow, example_rows, folds, layer_rows, neuron_rows, worst_first
from memaudit.report.words import ACCEPTED, MAX_COMMAND, MAX_MESSAGE, OUTCOMES, SYMBOLS, accepted, checkpoint
from memaudit.text import clean

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from memaudit.findings import Share
    from memaudit.report.document import Report

# A page with pictures stays under 2 MB; a few hundred findings without them under 300 KB. A longer table of neurons
# helps nobody, and all of them are in the JSON.
MAX_PAGE = 1_990_000
MAX_NEURONS = 50
MAX_PLAIN_JSON = 64_000
# Slices shown; all are in the JSON.
MAX_SLICES = 24
# How many pieces of the template make one piece of text.
PIECES = 500


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
    shown = pictures.data_urls(report, thumbnails, MAX_PAGE - size)
    wanted = {f.example.id for f in report.findings} & set(thumbnails)
    return _page(report, data, shown, len(wanted - set(shown)))


def _page(report: Report, data: Markup, shown: Mapping[str, Markup], left_out: int) -> Iterator[str]:
    style, script = own("page.css"), own("page.js")
    neurons = neuron_rows(report, MAX_NEURONS)
    anchors = frozenset(row.anchor for row in neurons)
    layers = layer_rows(report)
    settled = accepted(report)
    ordered = worst_first(report)
    page = (
        environment()
        .get_template("page.html.jinja")
        .stream(
            policy=content_policy(style, script, bool(shown)),
            style=style,
            script=script,
            report=report,
            data=data,
            state=story.state(report),
            story=story,
            opening=opening,
            glossary=glossary,
            words={outcome: (*OUTCOMES[outcome], SYMBOLS[outcome]) for outcome in OUTCOMES},
            worst=list(example_rows(report, [f for f in ordered[: pictures.LARGE] if f.memorized], anchors)),
            rows=example_rows(report, ordered[: pictures.OPEN], anchors),
            folds=folds(report, ordered[pictures.OPEN :], anchors),
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
            heat=_heat(report),
            learned=_learned(report),
            gradients=_gradients(report),
        )
    )
    page.enable_buffering(PIECES)
    return page


def embed(report: Report) -> str:
    """The page in an `iframe`: its style and script stay inside, and all it may do is run, copy and download."""
    from markupsafe import Markup

    return str(
        Markup(
            '<iframe title="memaudit report" width="100%" height="720" frameborder="0" loading="lazy"'
            ' sandbox="allow-scripts allow-downloads" allow="clipboard-write" srcdoc="{}"></iframe>'
        ).format(render(report))
    )


def environment() -> Environment:
    """Templates beside this file; whatever they print is one printable line, escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("memaudit.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters.update(percent=percent, counted=count, setting=_setting, brief=clean, checkpoint=checkpoint)
    found.filters.update(
        multiple=_multiple, signed=_signed, share=_share, change=_change, linked=glossary.Glossary().link
    )
    return found


def _printable(value: Any) -> Any:
    """Every value the template prints: one printable line, then escaped. Markup is our own and passes."""
    return value if hasattr(value, "__html__") else clean(value, MAX_COMMAND)


def _setting(value: object) -> str:
    """A setting as a person writes it."""
    if isinstance(value, (list, tuple)):
        return clean(", ".join(map(_setting, value)) or "none", MAX_MESSAGE)
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return clean(value, MAX_MESSAGE)


def _multiple(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}×" if value >= 0.1 else f"{value:.2g}×"


def _share(value: Share) -> str:
    ci = interval(value.low, value.high)
    return f"{percent(value.rate)} ({ci})" if ci else percent(value.rate)


def _change(pair: tuple[float, float]) -> str:
    return f"{points(*pair)} pts"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}".replace("-", "−")


def own(name: str) -> Markup:
    """One of the files beside this one, for the template to print as it is."""
    from markupsafe import Markup

    return Markup((resources.files(__package__) / name).read_text("utf-8").strip())  # noqa: S704


def content_policy(style: str, script: str | None, pictures: bool) -> str:
    """The CSP: nothing is loaded, and only the page's own style and script apply."""
    sources = {
        "default-src": "'none'",
        "style-src": f"'sha256-{_digest(style)}'",
        "script-src": "'none'" if script is None else f"'sha256-{_digest(script)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if pictures:
        sources["img-src"] = "data:"
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
            charts.Series("flagged", flagged),
            charts.Series("reference", reference, square=True),
        ],
    )


def _learned(report: Report) -> Markup | None:
    """Accuracy of the whole network along the series."""
    if len(report.series) < 2:
        return None
    names = [clean(point.checkpoint, 24) for point in report.series]

    def line(style: str, square: bool = False) -> charts.Series:
        values = [(n, getattr(point, style)) for n, point in enumerate(report.series)]
        return charts.Series(style, [(n, v) for n, v in values if v is not None], square)

    title = "Flagged labels, reference and matched clean examples predicted at each checkpoint"
    return charts.course(title, names, [line("flagged"), line("reference", square=True), line("matched")])


def _gradients(report: Report) -> tuple[Markup, Markup] | None:
    moments = timeline.moments(report)
    if len(moments) < 2:
        return None
    names = [clean(moment.checkpoint, 24) for moment in moments]

    def lines(flagged: str, matched: str) -> list[charts.Series]:
        found = []
        for style, key in (("flagged", flagged), ("matched", matched)):
            values = [(n, getattr(moment, key)) for n, moment in enumerate(moments)]
            found.append(charts.Series(style, [(n, v) for n, v in values if v is not None]))
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
