"""What a report says in sentences: the verdict, how sure it is, the policy line by line, what was not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memaudit.findings import AUDITS, OVER_TIME, Outcome
from memaudit.numbers import count, interval, number, percent
from memaudit.report import words
from memaudit.report.words import MAX_MESSAGE
from memaudit.text import clean

if TYPE_CHECKING:
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
    judged = report.summary.memorization is not None
    return " ".join(part for part in (finding(report), how_sure(report), SCOPE if judged else "") if part)


def finding(report: Report) -> str:
    """How many of the flagged examples are memorized, and where they sit."""
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
    "A rightly labelled, ordinary training example is never memorized in this sense, and it is not shown to be absent "
    "from the training set."
)


def how_sure(report: Report) -> str:
    """How many are memorized beyond chance, how often clean examples are called, and what would be missed."""
    found = report.summary.memorization
    if found is None:
        return ""
    beyond = (
        f"Beyond chance: {number(round(found.beyond, 1))} ({found.beyond_low:,} to {found.beyond_high:,}). "
        f"{count(found.reached, 'example')} {'has' if found.reached == 1 else 'have'} a p-value of at most "
        f"{percent(found.level)}; of a clean list as long, {number(round(found.expected, 1))} would."
    )
    if more := _further(report, found.level):
        beyond = f"{beyond} {more}"
    alarms = (
        f"False alarms: {percent(found.false_alarms)} of clean examples "
        f"({interval(found.false_alarms_low, found.false_alarms_high)}; {percent(found.false_alarms_hard)} where those "
        "that the model mispredicts count, too)."
    )
    power = "Power: not measured, no wrong label could be planted."
    if found.planted:
        power = (
            f"Power, roughly: of {count(found.planted, 'wrong label')} that a copy of the network was made to learn "
            f"for this trial, the evidence finds {percent(found.power)} "
            f"({interval(found.power_low, found.power_high)})."
        )
    known = (
        f"The model gives the wrong label of {found.true_label_lost:,} of {found.true_label_known:,} examples whose "
        "true label is known."
    )
    return " ".join([beyond, alarms, power, *([known] if found.true_label_known else [])])


def _further(report: Report, level: float) -> str:
    """Why some are called whose p-value alone would not do: in a list that is memorized nearly whole."""
    judged = [f.estimate for f in report.findings if f.memorized and f.estimate is not None]
    more = [e for e in judged if e.p_value > level]
    if not more:
        return ""
    clean = percent(max(e.q_value or 0.0 for e in more))
    are = "is" if len(more) == 1 else "are"
    high = percent(max(e.p_value for e in more))
    return f"{len(more):,} more, of up to {high}, {are} called: at most {clean} of all as low are clean in this list."


def _where(report: Report) -> str:
    memorized = [f for f in report.findings if f.memorized]
    found = [f for f in memorized if f.outcome is Outcome.LOCALIZED]
    if memorized and all(f.outcome is Outcome.NOT_SEARCHED for f in memorized):
        return "Which units hold it was not asked for."
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


def not_counted(report: Report) -> str:
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
