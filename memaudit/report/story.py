"""What a report says in sentences: the verdict, what stands behind each key figure, what was not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memaudit.findings import AUDITS, OVER_TIME, Outcome
from memaudit.numbers import MISSING, count, interval, number, percent
from memaudit.report import words
from memaudit.report.words import MAX_MESSAGE, label
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Finding
    from memaudit.report.document import Report

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
    """One line of the policy.

    Attributes:
        limit: what it allows; empty for a failure that names no rule.
        met: `None` where the report does not say.
        word: `met`, `not met` (and why), or why that is not known.
    """

    name: str
    limit: str
    met: bool | None
    word: str


def state(report: Report) -> State:
    """An incomplete audit is neither a pass nor a fail."""
    return "incomplete" if report.status == "incomplete" else report.verdict


def summary(report: Report) -> str:
    """The finding of the whole audit in a few sentences."""
    return " ".join(part for part in (_finding(report), evidence(report)) if part)


def _finding(report: Report) -> str:
    total = report.summary
    if total.flagged == 0:
        return "No flagged example was audited."
    so_far = " audited so far" if report.status == "incomplete" else ""
    one = total.flagged == 1
    whole = f"the one flagged example{so_far}" if one else f"the {total.flagged:,} flagged examples{so_far}"
    if total.fitted == 0:
        return f"The model does not predict the flagged label of {whole if one else f'any of {whole}'}."
    if total.memorized == 0:
        none = f"{whole.capitalize()} is not memorized" if one else f"None of {whole} is memorized"
        return f"{none}, though the model fits {'it' if one else f'{total.fitted:,} of them'}."
    if one:
        return f"{whole.capitalize()} is memorized. {_where(report)}"
    return f"{total.memorized:,} of {whole} {'is' if total.memorized == 1 else 'are'} memorized. {_where(report)}"


# What a green verdict does not say.
SCOPE = (
    "A rightly labelled, ordinary training image is never memorized in this sense, and it is not shown to be absent "
    "from the training set."
)


def evidence(report: Report) -> str:
    """How many are memorized beyond chance, how often clean examples are called, and what would be missed."""
    found = report.summary.memorization
    if found is None:
        return ""
    beyond = (
        f"Beyond chance: {number(round(found.beyond, 1))} ({found.beyond_low:,} to {found.beyond_high:,}) of "
        f"{count(found.reached, 'example')} with a p-value of at most {percent(found.level)}, which "
        f"{number(round(found.expected, 1))} of a clean list would reach."
    )
    alarms = (
        f"False alarms: {percent(found.false_alarms)} of clean examples "
        f"({interval(found.false_alarms_low, found.false_alarms_high)}; {percent(found.false_alarms_hard)} where those "
        "that the model mispredicts count, too)."
    )
    power = (
        f"Power: this evidence finds at most {percent(found.power)} "
        f"({interval(found.power_low, found.power_high)}) of changed labels."
    )
    known = (
        f"The model gives the wrong label of {found.true_label_lost:,} of {found.true_label_known:,} examples whose "
        "true label is known."
    )
    return " ".join([beyond, alarms, power, *([known] if found.true_label_known else []), SCOPE])


def _where(report: Report) -> str:
    found = [f for f in report.findings if f.memorized and f.outcome is Outcome.LOCALIZED]
    if not found:
        return "No small set of units was found that suppresses the label and spares the reference."
    units = sorted(len(f.units) for f in found)
    middle = (units[(len(units) - 1) // 2] + units[len(units) // 2]) / 2
    if len(found) < report.summary.memorized:
        who = "1 of them sits" if len(found) == 1 else f"{len(found):,} of them sit"
    else:
        who = "It sits" if len(found) == 1 else "All of them sit"
    median = "" if len(found) == 1 else "a median of "
    what = "1 unit: cutting it" if middle == 1 else f"{number(middle)} units: cutting them"
    return f"{who} in {median}{what} suppresses the label."


def accepted(report: Report) -> str:
    """How many memorized examples do not count, and why; empty where all do."""
    settled = list(words.accepted(report).values())
    waived, known = settled.count("waived"), settled.count("known")
    baseline = clean(report.gate.baseline or "")
    parts = [f"{waived:,} waived"] if waived else []
    parts += [f"{known:,} known from the baseline {baseline}".rstrip()] if known else []
    left = report.summary.memorized - waived - known
    return f"Of the memorized examples, {' and '.join(parts)}; {left:,} left." if parts else ""


def active(report: Report) -> int:
    """Memorized examples that nobody has accepted."""
    settled = words.accepted(report)
    return sum(f.memorized and f.id not in settled for f in report.findings)


def rules(report: Report) -> list[Rule]:
    """The policy line by line, after the failures that name no line of it.

    A failure names its rule by starting with the rule's key: `max_memorized: 3 of 20 ...`. A rule is called met only in
    a complete audit where every failure is accounted for.
    """
    reasons: dict[str, str] = {}
    strange: list[Rule] = []
    for text in report.gate.failed:
        key, _, reason = text.partition(":")
        if _rule_key(key) in map(_rule_key, report.gate.policy):
            reasons[_rule_key(key)] = clean(reason.strip(), MAX_MESSAGE)
        else:
            strange.append(Rule(clean(text, MAX_MESSAGE), "", False, "not met"))
    lines = []
    for name, limit in report.gate.policy.items():
        met, word = _judge(report, reasons.get(_rule_key(name)), bool(strange))
        lines.append(Rule(clean(name.replace("_", " ").replace("-", " ")), clean(limit), met, word))
    return strange + lines


def _judge(report: Report, reason: str | None, unexplained: bool) -> tuple[bool | None, str]:
    if reason is not None:
        return False, f"not met: {reason}" if reason else "not met"
    if report.status == "incomplete":
        return None, "not decided"
    return (None, "see above") if unexplained else (True, "met")


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
            (bool(fitted) and not controls, AUDITS["localize"].title),
            (report.groups.matched_controls is None, "matched clean examples (control)"),
            (not any(c.augmented for c in controls), "augmented copies (control)"),
            (not any(c.flagged_others for c in controls), "effect on the other flagged examples (control)"),
            (not report.groups.curve, "cutting shared units together"),
            *((name not in ran, AUDITS[name].title) for name in OVER_TIME),
            (report.data.test is None, "accuracy on held-out test data"),
        )
        if missing
    ]


def _audits(report: Report) -> set[str]:
    """The audits over time that left data in the report."""
    return {name for layer in report.layers for name in OVER_TIME if getattr(layer, name, None)}


def figures(report: Report) -> list[Figure]:
    """The figures a reader looks for first. Counts are counts of this flagged set and carry no interval."""
    total = report.summary
    localized = total.outcomes.get(Outcome.LOCALIZED, 0)
    score = total.atypicality_auroc if total.estimate_auroc is None else total.estimate_auroc
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


def matched(report: Report) -> str:
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


def beside(report: Report) -> list[str]:
    """What stands beside the figures: clean examples, true labels, known units, other seeds."""
    found = (matched(report), _true_labels(report), known(report), _stability(report))
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


def effort(report: Report) -> str:
    """How many passes the localization took; for an appendix."""
    effort = report.effort
    if effort is None or effort.ratio is None:
        return ""
    search, verification = round(effort.search), round(effort.verification)
    return (
        f"The search took {search:,} forward passes and its verification {verification:,}, {effort.ratio:.1f} times as "
        "many; a backward pass counts as one and a half."
    )


def known(report: Report) -> str:
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


def prediction(report: Report, finding: Finding) -> str:
    """`cat → dog`: what the model says before and after the cut; one name where nothing was cut."""
    before = label(report, finding.before.prediction)
    return before if finding.after is None else f"{before} → {label(report, finding.after.prediction)}"
