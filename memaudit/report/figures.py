"""The figures a reader looks for first, and what stands beside them in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.findings import Outcome
from memaudit.numbers import MISSING, count, interval, number, percent
from memaudit.report.words import label

if TYPE_CHECKING:
    from memaudit.findings import Finding
    from memaudit.report.document import Report


@dataclass(frozen=True)
class Figure:
    """One key figure: its value, how sure it is, and how it was measured."""

    name: str
    value: str
    of: str
    detail: str
    how: str


def figures(report: Report) -> list[Figure]:
    """The figures a reader looks for first. Counts are counts of this flagged set and carry no interval."""
    total = report.summary
    localized = total.outcomes.get(Outcome.LOCALIZED, 0)
    score = total.score_auroc
    auroc = "" if score is None else f" AUROC against the reference: {score:.2f}."
    share = percent(total.memorized / total.flagged) if total.flagged else MISSING
    return [
        Figure(
            "Memorized",
            f"{total.memorized:,}",
            f"of {total.flagged:,}",
            share,
            f"Fitted, and what does not know the label does not support it, beyond what is chance.{auroc}",
        ),
        Figure(
            "Localized",
            f"{localized:,}",
            f"of {total.fitted:,} fitted",
            percent(localized / total.fitted) if total.fitted else MISSING,
            "A few units suppress the label, the reference survives, as many random units do not do it. Counted.",
        ),
        _median_units(report),
        _reference_kept(report),
        Figure(
            "Random units suppress",
            percent(total.random_erased),
            "",
            _ci(total.random_low, total.random_high),
            "As many random live units of the same layers, cut instead. Near zero means the chosen units matter.",
        ),
    ]


def _median_units(report: Report) -> Figure:
    matched = report.groups.matched_controls
    if matched is None or matched.median_units is None:
        detail = ""
    else:
        detail = f"clean examples: {number(matched.median_units)}"
    return Figure(
        "Median units per example",
        number(report.summary.median_units),
        "",
        detail,
        "Fewest units found that suppress one label, after restoring each one that was not needed.",
    )


def _reference_kept(report: Report) -> Figure:
    kept = [f.reference_accuracy.retained for f in report.findings if f.reference_accuracy]
    rates = [rate for rate in kept if rate is not None]
    lowest = f"lowest {percent(min(rates))}" if rates else ""
    total = report.summary
    return Figure(
        "Reference kept",
        percent(total.reference_retained),
        "",
        _ci(total.reference_retained_low, total.reference_retained_high) or lowest,
        "Of the reference examples the model gets right, the share still right with one example's units cut. Mean.",
    )


def same_search(report: Report) -> str:
    """What the same search finds on clean examples, in one sentence; empty where it was not run."""
    found = report.groups.matched_controls
    if found is None:
        return ""
    who = count(found.examples, "clean example")
    parts = [f"The same search on {who} of the same labels and similar margins needs a median of "]
    unit = "unit" if found.median_units == 1 else "units"
    parts.append(f"{number(found.median_units)} {unit}; flagged examples need {number(report.summary.median_units)}.")
    if found.auc is not None:
        ci = _ci(found.low, found.high)
        parts.append(f" A clean example needs more units than a flagged one in {percent(found.auc)} of pairs")
        parts.append(f" ({ci})." if ci else ".")
    return "".join(parts)


def kinds(report: Report) -> str:
    """What the units are: channels, neurons or attention heads where all are of one kind."""
    found = {unit.kind for unit in report.neurons}
    return {"head": "attention heads"}.get(kind := found.pop(), f"{kind}s") if len(found) == 1 else "units"


def sentences(report: Report) -> list[str]:
    """What stands beside the figures: clean examples, true labels, known units, other seeds."""
    found = (same_search(report), _true_labels(report), tied_dropout(report), _stability(report))
    return [text for text in found if text]


def _true_labels(report: Report) -> str:
    total = report.summary
    if not total.true_label_known:
        return ""
    who = count(total.true_label_known, "example")
    ci = _ci(total.true_label_low, total.true_label_high)
    return f"Of {who} with a known true label, {percent(total.true_label_back)} take it after the cut ({ci})."


def _stability(report: Report) -> str:
    found = report.groups.stability
    if found is None or found.jaccard is None:
        return ""
    ci = _ci(found.low, found.high)
    runs = count(len(found.seeds), "other seed")
    return f"With {runs} the search finds sets whose mean Jaccard index with these is {found.jaccard:.2f} ({ci})."


def passes_taken(report: Report) -> str:
    """How many passes the localization took; for an appendix."""
    taken = report.effort
    if taken is None or taken.ratio is None:
        return ""
    search, verification = round(taken.search), round(taken.verification)
    return (
        f"The search took {search:,} forward passes and its verification {verification:,}, {taken.ratio:.1f} times as "
        "many; a backward pass counts as one and a half. Random units are drawn until the planned draws would "
        "decide otherwise in less than one case of a hundred (stochastic curtailment)."
    )


def tied_dropout(report: Report) -> str:
    """What example-tied dropout knows of the units found, in one paragraph; empty for networks without it."""
    found = report.known_units
    if found is None:
        return ""
    whose = "the memorizing units are each example's own" if found.own else "flagged ids are no integers: all count"
    true = "" if found.true_label_dropped is None else f", their true labels {percent(found.true_label_dropped)}"
    where = count(len(found.layers), "layer")
    text = (
        f"The network was trained with example-tied dropout in {where} ({whose}). With its memorizing units dropped,"
        f" {percent(found.flagged_dropped)} of the flagged labels are predicted{true}, and the reference accuracy is"
        f" {percent(found.reference_dropped)}."
    )
    if found.held:
        ci = _ci(found.recall_low, found.recall_high)
        text += (
            f" Of {count(found.held, 'flagged label')} that these units hold, the audit names one of them for"
            f" {found.recalled:,}: recall {percent(found.recall)} ({ci}). {percent(found.precision)} of the units it"
            f" cuts are memorizing; random units would be in {percent(found.chance)} of cases."
        )
    return text


def _ci(low: float | None, high: float | None) -> str:
    text = interval(low, high)
    return f"95% interval {text}" if text else ""


def before_and_after(report: Report, finding: Finding) -> str:
    """`cat → dog`: what the model says before and after the cut; one name where nothing was cut."""
    before = label(report, finding.before.prediction)
    return before if finding.after is None else f"{before} → {label(report, finding.after.prediction)}"
