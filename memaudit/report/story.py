"""What a report says in sentences: the verdict, what stands behind each key figure, what was not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memaudit.findings import Outcome
from memaudit.report.words import MISSING, count, interval, label, number, percent
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Finding, Report

State = Literal["pass", "fail", "incomplete"]

HEADLINES: dict[State, str] = {
    "pass": "Policy met",
    "fail": "Policy not met",
    "incomplete": "Audit incomplete: no verdict",
}

LIMITS = (
    (
        "An ablation suppresses a label; it does not delete what was learned: the audited checkpoint is unchanged, "
        "and further training can bring the label back."
    ),
    (
        "Memorized means fitted although the nearest reference neighbours do not support the label: evidence from the "
        "model's behaviour, not a proof that the example was in the training set."
    ),
    (
        "Each example is suppressed on its own. Suppressing many together costs more reference accuracy than any one "
        "of them alone."
    ),
    (
        "Reference accuracy is measured on the reference set named below; other populations can lose more or less "
        "than it does."
    ),
)
"""What an ablation shows, and what it does not."""


@dataclass(frozen=True)
class Figure:
    """One key figure: its value, how sure it is, and how it was measured."""

    name: str
    value: str
    of: str
    detail: str
    how: str


@dataclass(frozen=True)
class Rule:
    """One line of the policy and whether the report meets it; `met` is `None` where the audit is incomplete."""

    name: str
    limit: str
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "met", False: "not met", None: "not decided"}[self.met]


def state(report: Report) -> State:
    """An incomplete audit is neither a pass nor a fail."""
    return "incomplete" if report.status == "incomplete" else report.verdict


def summary(report: Report) -> str:
    """The finding of the whole audit in one or two sentences."""
    total = report.summary
    if total.flagged == 0:
        return "No flagged example was audited."
    whole = "the 1 flagged example" if total.flagged == 1 else f"the {total.flagged:,} flagged examples"
    so_far = " audited so far" if report.status == "incomplete" else ""
    if total.fitted == 0:
        return f"The model does not predict the flagged label of any of {whole}{so_far}."
    if total.memorized == 0:
        return f"None of {whole}{so_far} is memorized, though the model fits {total.fitted:,} of them."
    verb = "is" if total.memorized == 1 else "are"
    return f"{total.memorized:,} of {whole}{so_far} {verb} memorized. {_where(report)}".rstrip()


def _where(report: Report) -> str:
    found = [f for f in report.findings if f.memorized and f.outcome is Outcome.LOCALIZED]
    if not found:
        return "No small set of units was found that suppresses one of them alone."
    units = sorted(len(f.units) for f in found)
    middle = (units[(len(units) - 1) // 2] + units[len(units) // 2]) / 2
    kept = [f.reference_accuracy.retained for f in found if f.reference_accuracy]
    rates = [rate for rate in kept if rate is not None]
    cost = f", and the reference keeps {percent(sum(rates) / len(rates))} of its right answers" if rates else ""
    if len(found) < report.summary.memorized:
        who = "1 of them sits" if len(found) == 1 else f"{len(found):,} of them sit"
    else:
        who = "It sits" if len(found) == 1 else "All of them sit"
    median = "" if len(found) == 1 else "a median of "
    what = "1 unit: cutting it" if middle == 1 else f"{number(middle)} units: cutting them"
    return f"{who} in {median}{what} suppresses the label{cost}."


def rules(report: Report) -> list[Rule]:
    """The policy line by line. A failure that names no line of the policy gets a line of its own."""
    gate = report.gate
    keys = {name: _rule_key(name) for name in gate.policy}
    failed = [_rule_key(text) for text in gate.failed]
    strange = [text for text, key in zip(gate.failed, failed, strict=True) if not key.startswith(tuple(keys.values()))]
    # A rule is called met only where every failure is accounted for.
    otherwise = True if report.status == "complete" and not strange else None
    lines = [
        Rule(_rule_name(name), clean(limit), False if any(f.startswith(keys[name]) for f in failed) else otherwise)
        for name, limit in gate.policy.items()
    ]
    return lines + [Rule(clean(text, 400), "", False) for text in strange]


def _rule_name(name: str) -> str:
    return clean(name.replace("_", " ").replace("-", " "))


def _rule_key(name: str) -> str:
    return name.replace("-", "_").strip().lower()


def not_run(report: Report) -> list[str]:
    """What the audit could have measured and did not, in the reader's words."""
    fitted = [f for f in report.findings if f.fitted]
    controls = [f.controls for f in fitted if f.controls]
    ran = _audits(report)
    return [
        words
        for missing, words in (
            (bool(fitted) and not controls, "localization and its controls"),
            (report.groups.matched_controls is None, "matched clean examples (control)"),
            (not any(c.augmented for c in controls), "augmented copies (control)"),
            (not any(c.flagged_others for c in controls), "effect on the other flagged examples (control)"),
            (not report.groups.curve, "cutting shared units together"),
            ("gradients" not in ran, "gradient accounting"),
            ("rewind" not in ran, "layer rewinding"),
            ("retrain" not in ran, "layer retraining"),
            (report.data.test is None, "accuracy on held-out test data"),
        )
        if missing
    ]


def _audits(report: Report) -> set[str]:
    """The audits over time that left data in the report."""
    names = ("gradients", "rewind", "retrain")
    return {name for layer in report.layers for name in names if getattr(layer, name, None)}


def figures(report: Report) -> list[Figure]:
    """The figures a reader looks for first. Counts are counts of this flagged set and carry no interval."""
    total = report.summary
    localized = total.outcomes.get(Outcome.LOCALIZED, 0)
    share = percent(total.memorized / total.flagged) if total.flagged else MISSING
    return [
        Figure(
            "Memorized",
            f"{total.memorized:,}",
            f"of {total.flagged:,}",
            share,
            "Fitted, and the nearest reference neighbours in the model's features do not support the label. Counted.",
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
    return Figure(
        "Reference kept",
        percent(report.summary.reference_retained),
        "",
        f"lowest {percent(min(rates))}" if rates else "",
        "Of the reference examples the model gets right, the share still right with one example's units cut. Mean.",
    )


def matched(report: Report) -> str:
    """What the same search finds on clean examples, in one sentence; empty where it was not run."""
    found = report.groups.matched_controls
    if found is None:
        return ""
    who = count(found.examples, "clean example")
    parts = [f"The same search on {who} of the same labels and similar margins needs a median of "]
    parts.append(f"{number(found.median_units)} units; flagged examples need {number(report.summary.median_units)}.")
    if found.auc is not None:
        ci = _ci(found.low, found.high)
        parts.append(f" A clean example needs more units than a flagged one in {percent(found.auc)} of pairs")
        parts.append(f" ({ci})." if ci else ".")
    return "".join(parts)


def _ci(low: float | None, high: float | None) -> str:
    text = interval(low, high)
    return f"95% interval {text}" if text else ""


def prediction(report: Report, finding: Finding) -> str:
    """`cat → dog`: what the model says before and after the cut; one name where nothing was cut."""
    before = label(report, finding.before.prediction)
    return before if finding.after is None else f"{before} → {label(report, finding.after.prediction)}"
