"""The report as GitHub-flavoured Markdown: for a pull request, a step summary or a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from memaudit.numbers import MISSING, count, interval, percent
from memaudit.report import counterfactual, erasure, figures, opening, story, timeline
from memaudit.report.rows import ExampleRow, example_rows, neuron_rows, worst_first
from memaudit.report.words import ACCEPTED, MAX_COMMAND, MAX_MESSAGE, checkpoint, outside, size_of
from memaudit.text import MAX_LENGTH, clean

if TYPE_CHECKING:
    from memaudit.report.document import Report

# A step summary holds at most 1 MiB; a thousand rows of the longest names stay well below it.
MAX_EXAMPLES = 500
MAX_NEURONS = 50
MAX_UNITS = 5
MAX_SLICES = 24
MAX_WARNINGS = 50
_SIGNS = {"pass": "✅", "fail": "❌", "incomplete": "⚠️"}


def render(report: Report) -> str:
    """Verdict, key figures, examples, units, warnings and provenance, ending in one newline."""
    state = story.state(report)
    blocks = [
        f"# {_SIGNS[state]} {story.HEADLINES[state]}: {code(report.model.path)}",
        _caveat(report),
        *(f"**{answer.question}.** {answer.text}" for answer in opening.answers(report, code)),
        outside(story.not_counted(report), MAX_MESSAGE),
        _facts(report),
        _policy(report),
        _warnings(report),
        _figures(report),
        *figures.sentences(report),
        _examples(report),
        _neurons(report),
        _slices(report),
        _counterfactual(report),
        _erasure(report),
        _over_time(report),
        "## What this does not show",
        "\n".join(f"- {line}" for line in story.LIMITS),
        _not_run(report),
        _provenance(report),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _caveat(report: Report) -> str:
    found = opening.caveat(report)
    return f"⚠️ {found}" if found else ""


def _facts(report: Report) -> str:
    return table(["", ""], ([name, code(text, MAX_MESSAGE)] for name, text in opening.facts(report)))


def _counterfactual(report: Report) -> str:
    if report.counterfactuals is None:
        return ""
    said = "\n".join(f"- {line}" for line in counterfactual.summary(report.counterfactuals))
    head, rows = counterfactual.rows(report, MAX_NEURONS)
    models = ((code(n), code(h), a) for n, h, a in counterfactual.models(report.counterfactuals))
    without = table(("trained without them", "sha256", "reference accuracy"), models)
    listed = table(head, ((code(name), code(label), *rest) for name, label, *rest in rows))
    return "\n\n".join(["## Without the examples", said, counterfactual.ORDER, listed, without])


def _erasure(report: Report) -> str:
    if report.erasure is None:
        return ""
    figures = table(("figure", "examples", "before", "after"), erasure.rows(report.erasure))
    probes = table(("probe", "setting", "flagged label", "against"), erasure.probes(report.erasure))
    file = f"{code(report.erasure.file)}, SHA-256 {code(report.erasure.sha256)}"
    blocks = ["## Erased", f"{erasure.summary(report.erasure)} {file}", figures, probes]
    blocks += [erasure.membership(report.erasure), " ".join(report.erasure.notes)]
    return "\n\n".join(blocks)


def code(value: object, limit: int = MAX_LENGTH) -> str:
    """An outside string as a code span: no markup, link or mention in it is acted on, in a table cell either."""
    text = outside(value, limit)
    if not text.strip():
        return MISSING
    # A cell's parser counts backslashes in pairs, so those before a pipe are doubled along with it.
    text = re.sub(r"(\\*)\|", r"\1\1\\|", text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; every cell must be harmless already."""
    names = list(head)
    lines = ["| " + " | ".join(cells) + " |" for cells in ([*names], ["---"] * len(names), *(list(r) for r in rows))]
    return "\n".join(lines)


def _policy(report: Report) -> str:
    signs = {True: "✅", False: "❌", None: "…"}
    return "\n".join(
        f"- {signs[rule.met]} {code(f'{rule.name}: {rule.limit}' if rule.limit else rule.name)} {_word(rule)}"
        for rule in story.rules(report)
    )


def _word(rule: story.Rule) -> str:
    """The reason a rule failed is an outside string; the word before it is ours."""
    word, _, reason = rule.word.partition(": ")
    return f"{word}: {code(reason, MAX_MESSAGE)}" if reason else word


def _warnings(report: Report) -> str:
    lines = [f"- ⚠️ {code(w.message, MAX_MESSAGE)} ({code(w.code)})" for w in report.warnings[:MAX_WARNINGS]]
    rest = len(report.warnings) - MAX_WARNINGS
    return "\n".join([*lines, f"- and {count(rest, 'further warning')}"] if rest > 0 else lines)


def _figures(report: Report) -> str:
    rows = ([f.name, f"**{f.value}** {f.of}".strip(), f.detail] for f in figures.figures(report))
    return table(["figure", "value", ""], rows)


def _examples(report: Report) -> str:
    if not report.findings:
        return ""
    head = ["example", "source", "label", "outcome", "before → after", "units", "reference", "controls"]
    more = _more(len(report.findings), MAX_EXAMPLES, "example")
    return (
        f"## Examples\n\n{table(head, map(_example, example_rows(report, worst_first(report)[:MAX_EXAMPLES])))}{more}"
    )


def _example(row: ExampleRow) -> list[str]:
    outcome = f"{row.word}, memorized" if row.memorized else row.word
    if row.accepted:
        outcome += f", {ACCEPTED[row.accepted]}" + (f" {code(row.reason)}" if row.reason else "")
    change = f"{code(row.before)} → {code(row.after)}" if row.after else code(row.before)
    return [
        code(row.short_id),
        code(row.source),
        code(row.label),
        outcome,
        change,
        _units([unit.text for unit in row.units]),
        f"{row.cost_text} {row.cost_detail}".strip(),
        ", ".join(f"{name} {hits}" for name, hits in row.controls) or MISSING,
    ]


def _units(names: list[str]) -> str:
    rest = len(names) - MAX_UNITS
    shown = ", ".join(map(code, names[:MAX_UNITS])) or MISSING
    return f"{shown} and {rest} more" if rest > 0 else shown


def _neurons(report: Report) -> str:
    rows = neuron_rows(report, MAX_NEURONS)
    if not rows:
        return ""
    body = ([code(row.name), row.kind, str(len(row.erases)), row.reference] for row in rows)
    head = ["unit", "kind", "examples it serves", "change of accuracy without it"]
    return f"## Units\n\n{table(head, body)}{_more(len(report.neurons), MAX_NEURONS, 'unit')}"


def _slices(report: Report) -> str:
    """Shares by group, the largest gaps first."""
    if not report.slices:
        return ""
    rows = (
        [
            f"{code(s.by)} {code(s.value)}{' (small)' if s.small else ''}",
            f"{s.count:,}",
            *(f"{percent(x.rate)} ({interval(x.low, x.high)})" for x in (s.memorized, s.fitted, s.localized)),
        ]
        for s in report.slices[:MAX_SLICES]
    )
    head = ["group", "examples", "memorized", "fitted", "localized"]
    return f"## Who is affected most\n\n{table(head, rows)}{_more(len(report.slices), MAX_SLICES, 'group')}"


def _over_time(report: Report) -> str:
    """Learning order, gradients of the whole network, rewinding and the verdict on each layer."""
    if not report.series:
        return ""
    parts = ["## When, and in which layers", timeline.summary(report), timeline.learning(report, code)]
    gradients = {moment.checkpoint: moment for moment in timeline.moments(report)}
    rows = []
    for point in report.series:
        moment = gradients.get(clean(point.checkpoint))
        rows.append(
            [
                code(checkpoint(point)),
                *(percent(rate) for rate in (point.flagged, point.reference, point.matched)),
                MISSING if moment is None or moment.ratio is None else f"{moment.ratio:.1f}×",
                MISSING if moment is None or moment.cosine is None else f"{moment.cosine:+.2f}",
            ]
        )
    head = ["checkpoint", "flagged", "drawn reference", "matched clean", "flagged gradient / reference", "cosine"]
    parts.append(table(head, rows))
    rewound = [layer for layer in report.layers if layer.rewind]
    if rewound:
        names = [code(point.checkpoint) for point in rewound[0].rewind]
        cells = (
            [code(layer.layer), *(f"{100 * p.flagged:.0f} / {100 * p.reference:.0f}" for p in layer.rewind)]
            for layer in rewound
        )
        parts.append("One layer put back to an earlier checkpoint: % of flagged labels / of the reference still right.")
        parts.append(table(["layer", *names], cells))
    if any(layer.verdict for layer in report.layers):
        judged = ([code(r.layer), r.verdict, code(r.sentence, MAX_MESSAGE)] for r in timeline.judged_layers(report))
        parts += [timeline.retraining(report, code), table(["layer", "verdict", "what it rests on"], judged)]
    return "\n\n".join(part for part in parts if part)


def _more(total: int, shown: int, noun: str) -> str:
    return f"\n\n{count(total - shown, 'further ' + noun)} in `report.json`." if total > shown else ""


def _not_run(report: Report) -> str:
    missing = story.not_run(report)
    return f"Not run: {'; '.join(missing)}." if missing else ""


def _provenance(report: Report) -> str:
    model, data = report.model, report.data
    rows = [
        ["model", code(model.path), code(model.sha256)],
        ["flagged", f"{code(data.flagged.source)} ({data.flagged.count:,})", code(data.flagged.sha256)],
        ["reference", f"{code(data.reference.source)} ({size_of(data.reference)})", code(data.reference.sha256)],
    ]
    made = f"Made by {outside(report.tool.name)} {outside(report.tool.version)}: {code(report.command, MAX_COMMAND)}"
    return f"## Provenance\n\n{table(['what', 'source', 'sha256'], rows)}\n\n{made}"
