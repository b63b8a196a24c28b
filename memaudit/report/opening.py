"""The first screen in plain language: what was asked, what was found, how sure, what it costs, what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.findings import Outcome
from memaudit.numbers import count, interval, number, percent, points
from memaudit.report import story
from memaudit.report.rows import worst_first
from memaudit.report.words import label, named
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import DataSource, Erasure
    from memaudit.report.document import Report

Quote = Callable[[object], str]
"""Prints an outside string in a sentence of a view."""

RULES = ("max_memorized", "max_localized", "min_reference_accuracy")


@dataclass(frozen=True)
class Answer:
    """One question a reader has, and the answer in a few sentences."""

    question: str
    text: str


def policy_set(report: Report) -> bool:
    """Whether somebody set the policy; the default one, which lets nothing through, is nobody's verdict."""
    gate = report.gate
    if gate.policy != {"max_memorized": "0"} or gate.waived or gate.known or gate.baseline:
        return True
    settings = {name.replace("-", "_"): setting for name, setting in report.config.items()}
    return any(settings[rule].origin != "default" for rule in RULES if rule in settings)


def headline(report: Report) -> str:
    """What was found, in one line."""
    total = report.summary
    if report.status == "incomplete":
        return story.HEADLINES["incomplete"]
    if report.erasure is not None:
        return _after_edit(report, report.erasure)
    if not total.flagged:
        return "No flagged example was audited"
    if not total.fitted:
        return f"None of the {count(total.flagged, 'flagged label')} is predicted"
    if not total.memorized:
        return f"None of the {count(total.flagged, 'flagged example')} is memorized"
    are = "is" if total.memorized == 1 else "are"
    return f"{total.memorized:,} of {count(total.flagged, 'flagged example')} {are} memorized"


def _after_edit(report: Report, erasure: Erasure) -> str:
    """How many of the flagged labels that the original fits the edited file still predicts."""
    after, counts = erasure.after, erasure.counts
    fitted = counts.get("used", 0) + counts.get("unused", 0)
    still = (after.used or 0.0) * counts.get("used", 0) + (after.unused or 0.0) * counts.get("unused", 0)
    return f"Edited copy: {round(still):,} of {count(fitted, 'fitted flagged label')} still predicted"


def answers(report: Report, quote: Quote = clean) -> list[Answer]:
    """The questions in the order a reader asks them."""
    found = [
        Answer("Asked", _asked(report, quote)),
        Answer("Found", " ".join(t for t in (story.finding(report), _worst(report, quote), _rest(report)) if t)),
        Answer("How sure", _sure(report)),
        Answer("What it does not say", _limits(report)),
        Answer("What it costs", cost(report)),
        Answer("What to do next", _next(report)),
    ]
    if report.erasure is not None:
        found.insert(1, Answer("Edited", _edit(report, report.erasure, quote)))
    return [answer for answer in found if answer.text]


def _asked(report: Report, quote: Quote) -> str:
    data = report.data
    return (
        f"Which of {count(report.summary.flagged, 'flagged example')} ({quote(data.flagged.source)}) has the model "
        f"memorized with the label it was trained with, and in which units does each sit?"
    )


def _worst(report: Report, quote: Quote) -> str:
    """The worst example by name, where there are several."""
    first = next(iter(worst_first(report)), None)
    if first is None or not first.memorized or report.summary.memorized < 2:
        return ""
    return f"The worst: {quote(named(first.example))}, trained as {quote(label(report, first.example.label))}."


def _rest(report: Report) -> str:
    """What became of the examples that are not memorized."""
    total = report.summary
    supported = total.fitted - total.memorized
    unfitted = total.flagged - total.fitted
    parts = []
    if supported and total.memorized:
        are, them = ("is", "it") if supported == 1 else ("are", "them")
        parts.append(f"{supported:,} more {are} fitted, but clean examples like {them} support the label")
    if unfitted and total.fitted:
        parts.append(f"the model does not predict the label of {unfitted:,}")
    return f"{'; '.join(parts)}.".capitalize() if parts else ""


def _sure(report: Report) -> str:
    total, parts = report.summary, [said] if (said := story.how_sure(report)) else []
    if (score := total.score_auroc) is not None:
        parts.append(
            f"The score behind the word memorized is higher for a flagged than for a clean example in "
            f"{percent(score)} of pairs."
        )
    if total.random_erased is not None:
        rate, ci = percent(total.random_erased), interval(total.random_low, total.random_high)
        parts.append(
            f"As many random units, cut instead, suppress the label in {rate}{f' ({ci})' if ci else ''} of draws."
        )
    return " ".join(parts)


def _limits(report: Report) -> str:
    scope = "" if report.summary.memorization is None else f" {story.SCOPE}"
    return f"All is inferred from how the model behaves; it is no proof of what was in the training data.{scope}"


def cost(report: Report) -> str:
    """What cutting the units of one example, and of many, takes from the reference."""
    total, parts = report.summary, []
    if total.reference_retained is not None:
        kept, ci = (
            percent(total.reference_retained),
            interval(total.reference_retained_low, total.reference_retained_high),
        )
        panel = max((f.reference_accuracy.panel for f in report.findings if f.reference_accuracy), default=0)
        where = f"on {panel:,} reference examples set aside" if panel else "on the reference"
        parts.append(
            f"With the units of one example cut, the model keeps {kept}{f' ({ci})' if ci else ''} of its right answers "
            f"{where}."
        )
    curve = report.groups.curve
    if len(curve) > 1:
        first, last = curve[0], curve[-1]
        change = points(first.reference_accuracy, last.reference_accuracy)
        on = f", on {count(last.reference_examples, 'reference example')}" if last.reference_examples else ""
        what = f"Cutting the {last.units:,} most shared units together changes the accuracy by {change} points{on}."
        parts.append(what)
    return " ".join(parts)


def _next(report: Report) -> str:
    total = report.summary
    if report.status == "incomplete":
        return (
            "See what cut the audit short under the warnings, and scan again. Until then nothing here is a clean bill."
        )
    if report.erasure is not None:
        return (
            "The checkpoint that was audited is unchanged. Scan the edited file before it ships, and hand on the "
            "report of that scan: a suppressed label can come back with further training."
        )
    if not total.flagged:
        return ""
    if not total.fitted:
        return "Check that labels and class order are those of training: models rarely miss all labels they were given."
    if not total.memorized:
        return "Keep report.json as the baseline that the next release is compared with (memaudit diff)."
    if story.active(report) == 0:
        return "Every memorized example is accepted by a waiver or the baseline: nothing is open."
    return (
        "Look at the worst examples below. Then train again without them and compare (memaudit diff), edit a copy of "
        "the checkpoint (memaudit erase), or accept them by name in a waiver file."
    )


def _edit(report: Report, erasure: Erasure, quote: Quote) -> str:
    """Before, after, and what that makes of the verdict."""
    before, after, counts = erasure.before, erasure.after, erasure.counts
    parts = []
    for name, key, was, now in (
        ("flagged labels the edit was made for", "used", before.used, after.used),
        ("flagged labels it never saw", "unused", before.unused, after.unused),
        ("reference accuracy", "reference", before.reference, after.reference),
        ("test accuracy", "test", before.test, after.test),
    ):
        if was is not None and now is not None:
            parts.append(f"{name} {percent(was)} → {percent(now)} (of {counts.get(key, 0):,})")
    return f"{quote(erasure.file)} is an edited copy. On it: {'; '.join(parts)}. {_verdict_after(report, erasure)}"


def _verdict_after(report: Report, erasure: Erasure) -> str:
    """What the policy says of the edited file, as far as each memorized example was measured on it."""
    labels = {f.id: f.example.label for f in report.findings if f.memorized}
    measured = {e.id: e.after.prediction for e in erasure.examples if e.id in labels}
    if not labels:
        return ""
    if len(measured) < len(labels):
        return "Not every memorized example was measured on it one by one: a scan of the edited file gives its verdict."
    left = sum(measured[i] == label for i, label in labels.items())
    return f"Of {count(len(labels), 'memorized example')}, {left:,} still get their label from it."


def facts(report: Report) -> list[tuple[str, str]]:
    """Date, model, its accuracy, data and counts: what stands on the first screen beside the answers."""
    model, data, total = report.model, report.data, report.summary
    localized = total.outcomes.get(Outcome.LOCALIZED, 0)
    counted = f"{total.flagged:,}: {total.fitted:,} fitted, {total.memorized:,} memorized, {localized:,} localized"
    started = clean(report.volatile.get("started", ""))
    rows = [
        ("Date", started.replace("T", " ").replace("Z", " UTC")),
        ("Model", f"{clean(model.path)}: {clean(model.architecture or 'own module')}, {model.parameters:,} parameters"),
        ("Accuracy, intact model", "; ".join(_accuracy(name, s) for name, s in _sources(report))),
        ("Data", f"{clean(data.flagged.source)} (flagged), {clean(data.reference.source)} (reference)"),
        ("Flagged examples", counted),
    ]
    return [(name, text) for name, text in rows if text]


def _sources(report: Report) -> list[tuple[str, DataSource | None]]:
    return [("reference", report.data.reference), ("test", report.data.test)]


def _accuracy(name: str, source: DataSource | None) -> str:
    if source is None:
        return f"no {name} data given"
    if source.accuracy is None:
        return f"{name}: not measured"
    ci = interval(source.low, source.high)
    return f"{percent(source.accuracy)}{f' ({ci})' if ci else ''} of all {count(source.count, f'{name} example')}"


def caveat(report: Report) -> str:
    """What takes the ground from a headline: clean examples that need as few units as the flagged ones."""
    found = report.groups.matched_controls
    flagged = report.summary.median_units
    if found is None or found.median_units is None or flagged is None or not report.summary.fitted:
        return ""
    as_few = found.median_units <= flagged if found.low is None else found.low <= 0.5
    if not as_few:
        return ""
    need = f"a median of {number(found.median_units)} against {number(flagged)} for flagged ones"
    return f"Clean examples need as few units ({need}): few units are no evidence that a label was memorized."


def ten_lines(report: Report) -> str:
    """What `print(report)` says."""
    rows = [(a.question, a.text) for a in answers(report)] + facts(report)
    first = f"memaudit: {headline(report)} ({clean(report.model.path)})"
    wanted = ("Found", "How sure", "What it costs", "Model", "Accuracy, intact model", "Flagged examples", "Date")
    table = dict(rows)
    lines = [first, *(f"{name}: {table[name]}" for name in wanted if name in table)]
    if warned := caveat(report):
        lines.insert(1, warned)
    verdict = story.HEADLINES[story.state(report)]
    lines.append(
        f"Gate: {verdict}{'' if policy_set(report) else ' (no policy was set: by default nothing may be memorized)'}"
    )
    return "\n".join(lines[:10])
