"""What the officer's page says, in sentences: no term stays unexplained, no figure without how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.numbers import count, interval, percent
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import DataSource, Erasure, ModelInfo
    from memaudit.report.document import Report
    from memaudit.report.verified import Verification

# Policies and warnings that a sheet holds; the report has all.
MOST = 6

ADVICE = "This page is technical evidence. It is no legal advice and decides no legal question."
SOURCES = (
    (
        "EDPB, Opinion 28/2024 on certain data protection aspects related to the processing of personal data in the "
        "context "
        "of AI models, 17 December 2024."
    ),
    "Regulation (EU) 2024/1689 (Artificial Intelligence Act), articles 11, 15 and annex IV.",
    "ISO/IEC 42001:2023, Artificial intelligence: Management system, annex A.",
)
SIGNED = ("Name and role", "Date", "Signature")


@dataclass(frozen=True)
class Point:
    """A requirement, and what of this evidence serves it.

    Attributes:
        stands: where in this page or in the report.
    """

    source: str
    asks: str
    stands: str


@dataclass(frozen=True)
class Sheet:
    """Everything on the page.

    Attributes:
        good: whether nothing was found that the policy does not allow; None where the work is incomplete.
        examined: names and values.
    """

    title: str
    headline: str
    good: bool | None
    asked: list[str]
    examined: list[tuple[str, str]]
    found: list[str]
    sure: list[str]
    not_shown: list[str]
    done: list[str]
    remains: list[str]
    points: list[Point]


def of_report(report: Report) -> Sheet:
    """The page of a scan."""
    total, gate = report.summary, report.gate
    are = "is" if total.memorized == 1 else "are"
    headline = (
        f"{total.memorized:,} of {count(total.flagged, 'examined training example')} {are} memorized by the model."
    )
    accepted = len({*gate.waived, *gate.known})
    found = [
        (
            "Memorized means here: the model gives the very label the example was trained with, and neither similar "
            "examples "
            "that are known to be right nor a copy of the model that had to learn without it support that label. The "
            "model then holds something about this one record."
        ),
    ]
    if total.outcomes:
        located = sum(f.memorized and f.outcome == "localized" for f in report.findings)
        found.append(
            f"For {located:,} of them a few parts of the network were found whose removal makes the model lose the "
            f"label "
            "while it keeps its other abilities. This says where the record sits; the examined file was not changed."
        )
    if (without := report.counterfactuals) is not None:
        found.append(
            f"Asked of {count(len(without.models), 'model')} trained without the examined examples, "
            f"{percent(without.memorized.rate)} ({_range(without.memorized.low, without.memorized.high)}) of the "
            f"labels "
            "are given only by the model that had the example."
        )
    if accepted:
        found.append(f"{count(accepted, 'memorized example')} had been accepted before, by name or in an older report.")
    return Sheet(
        title="Memorization audit: summary for the file",
        headline=headline,
        good=None if report.status == "incomplete" else report.verdict == "pass",
        asked=[
            (
                "Does this model hold on to single training examples? Those examined were named beforehand by the "
                "people who "
                "run it (wrong labels, withdrawn records, test entries): "
                f"{count(total.flagged, 'example')}."
            ),
            *_policy(gate.policy, gate.failed),
        ],
        examined=[
            *_model(report.model),
            *_set("Examined examples", report.data.flagged),
            *_set("Comparison examples", report.data.reference),
            *_run(report.volatile, report.by, report.tool.version, report.command),
        ],
        found=found,
        sure=_sure(report),
        not_shown=[
            "Only the named examples were examined. Others may be memorized too.",
            (
                "An example that is not called memorized may still have been used in training: a typical one leaves no "
                "trace."
            ),
            "Whether a person can be identified from an example, and by what means, is not examined.",
            *_warned(report.warnings),
        ],
        done=_edited(report.erasure),
        remains=_remains(report, accepted),
        points=_points(
            likelihood="“What was found” and “How sure”; single records in the report, section Flagged examples",
            resistance="one kind of attack: does the model give what it learned by heart? See “What it does not show”; "
            "membership tests are in memaudit verify",
            data="“What was examined”: sources, counts and hashes of the data; wrong labels found, in the report",
        ),
    )


def _sure(report: Report) -> list[str]:
    known = report.summary.memorized and report.summary.memorization
    said = report.summary.memorization
    if said is None:
        return ["How sure the finding is was not measured."]
    lines = []
    if known:
        lines.append(
            f"Of all examined examples, {said.beyond:.0f} are memorized beyond what chance explains "
            f"({said.beyond_low:,} to {said.beyond_high:,} with 95 % certainty). Of those called so, about one in "
            f"ten may "
            "be called wrongly."
        )
    lines.append(
        f"To see what the check can miss, {count(said.calibration, 'comparison example')} were given wrong labels "
        f"on paper: "
        f"it recognises {percent(said.power)} of them ({_range(said.power_low, said.power_high)})."
    )
    return lines


def _remains(report: Report, accepted: int) -> list[str]:
    open_ = report.summary.memorized - accepted
    lines = []
    if open_ > 0:
        lines.append(
            f"Decide about the {count(open_, 'memorized example')}: train again without them, edit the model "
            "(memaudit erase), or accept them with a reason and a date."
        )
    if report.erasure is not None or open_ > 0:
        lines.append("Then have the new model checked: memaudit verify says whether the examples are still in it.")
    lines.append(
        "Keep report.json with this page: it holds every figure, and its hash of the model shows what was examined."
    )
    return lines


def of_verification(found: Verification) -> Sheet:
    """The page of a verification."""
    from memaudit.report.verification import words

    said, best = found.membership, words.strongest(found.membership)
    return Sheet(
        title="Verification of removal: summary for the file",
        headline=f"{words.headline(found)}.",
        good=None if found.status == "incomplete" else found.verdict == "pass",
        asked=[
            (
                "Is what this model learned from certain examples still in it? The examples in question "
                "(“flagged”) were "
                f"named beforehand: {count(said.members, 'example')}. They were compared with "
                f"{count(said.others, 'example')} of the same kind that the model certainly never saw (“unseen”)."
            ),
            *_policy(found.gate.policy, found.gate.failed),
        ],
        examined=[
            *_model(found.model),
            *_set("Flagged examples", found.flagged),
            *_set("Unseen examples", found.unseen),
            *_set("Comparison examples", found.reference),
            *((f"Model trained without them: {clean(m.path)}", clean(m.sha256) or "in memory") for m in found.without),
            *_run(found.volatile, found.by, found.tool.version, found.command),
        ],
        found=[
            (
                f"{count(len(said.attacks), 'test')} tried to tell the flagged examples from the unseen ones by "
                f"the model's "
                f"answers. Shown one of each, the strongest picks the flagged one in {percent(best.auc)} of cases "
                f"({percent(best.auc_low)} to {percent(best.auc_high)} with 95 % certainty); a coin does in 50 %."
            ),
            *(
                f"Where at most {percent(one.level)} of unseen examples may be accused wrongly, "
                f"{percent(one.rate)} of the "
                f"flagged ones are recognised ({_range(one.low, one.high)}; more than {percent(one.level)} would "
                f"be a sign)."
                for one in best.rules
                if one.resolved
            ),
        ],
        sure=[
            (
                f"Had the model never seen them, a difference as large would appear with a probability of "
                f"{said.p_value:.2g}; "
                "that all tests were tried is counted. Below 0.05 it is called evidence."
            ),
            words.power(said),
        ],
        not_shown=[*words.LIMITS[:3], *_warned(found.warnings)],
        done=["Nothing was changed by this verification. It examines the model as it was handed over."],
        remains=[
            "Train again without the examples, or edit the model, and verify it again."
            if said.found
            else "Keep this page and verification.json. Verify again after every further training.",
            *(
                ["More unseen examples would let smaller traces show."]
                if said.clear is None or said.clear > said.members / 10
                else []
            ),
        ],
        points=_points(
            likelihood="“What was found” (how often an attacker would be right) and “How sure” (what would have shown)",
            resistance="membership inference by up to six published tests, listed in the verification, section Tests",
            data="“What was examined”: sources, counts and hashes of every set of examples",
        ),
    )


def _points(*, likelihood: str, resistance: str, data: str) -> list[Point]:
    return [
        Point(
            "EDPB Opinion 28/2024, section 3.2",
            "likelihood that personal data can be extracted from the model, directly or by queries",
            likelihood,
        ),
        Point("the same, testing and resistance to attacks", "tests against known attacks, and how many", resistance),
        Point("the same, documentation", "what was examined, how, when, and with what result", "this page and report"),
        Point("AI Act, annex IV 2 (d)", "data: origin, selection, labelling, cleaning", data),
        Point("AI Act, annex IV 2 (g)", "test procedures, metrics, dated and signed test reports", "this page, signed"),
        Point("AI Act, article 15", "resilience against attacks on confidentiality", resistance),
        Point("ISO/IEC 42001, A.5.4", "impact on individuals", "“What was found”, for the impact assessment"),
        Point(
            "ISO/IEC 42001, A.6.2.4", "verification and validation, with criteria", "the policy under “What was asked”"
        ),
        Point("ISO/IEC 42001, A.6.2.7", "technical documentation", "this page and report"),
        Point("ISO/IEC 42001, A.7.4", "quality of data", data),
    ]


RULES = {
    "max_memorized": "at most {} memorized examples that nobody has accepted",
    "max_localized": "at most {} memorized and localized examples that nobody has accepted",
    "min_reference_accuracy": "right on at least {} of the comparison examples, as a share",
    "no_evidence": "no evidence that the model was trained on them ({})",
    "max_tpr_at_fpr": "share wrongly accused, and share recognised that is allowed then: {}",
}
"""A policy's rules in plain words."""


def _policy(policy: dict[str, str], failed: list[str]) -> list[str]:
    rules = [
        RULES.get(name, clean(name).replace("{", "(").replace("}", ")") + " {}").format(clean(value))
        for name, value in list(policy.items())[:MOST]
    ]
    met = "It is not met." if failed else "It is met."
    return [f"The rule it is judged by: {'; '.join(rules)}. {met}"] if rules else []


def _model(model: ModelInfo) -> list[tuple[str, str]]:
    return [
        ("Model file", clean(model.path) or "in memory"),
        ("its SHA-256 (fingerprint)", clean(model.sha256) or "none: it was in memory"),
        ("Kind of model", clean(model.architecture or "unnamed")),
    ]


def _set(name: str, source: DataSource) -> list[tuple[str, str]]:
    return [(name, f"{clean(source.source)}: {count(source.count, 'example')}, SHA-256 {clean(source.sha256)}")]


def _run(volatile: dict[str, object], by: str, version: str, command: str) -> list[tuple[str, str]]:
    return [
        ("Date (UTC)", clean(volatile.get("started", "not recorded"))),
        ("Run by", clean(by) or "not given"),
        ("With", f"memaudit {clean(version)}: {clean(command, 400)}"),
    ]


def _warned(warnings: object) -> list[str]:
    from collections.abc import Sequence

    assert isinstance(warnings, Sequence)  # noqa: S101 - a list
    return [clean(warning.message, 400) for warning in warnings[:MOST]]


def _edited(erasure: Erasure | None) -> list[str]:
    if erasure is None:
        return ["Nothing was changed by this audit. The examined model is as it was."]
    before, after = erasure.before, erasure.after
    lines = [
        (
            f"An edited copy was written ({clean(erasure.file)}, SHA-256 {clean(erasure.sha256)}): "
            f"{clean(erasure.done or erasure.method)}. The examined model itself is as it was."
        ),
        f"Accuracy on comparison examples: {percent(before.reference)} before, {percent(after.reference)} after.",
    ]
    for name, old, new in (
        ("examples the edit was made with", before.used, after.used),
        ("examples it never saw", before.unused, after.unused),
    ):
        if old is not None:
            lines.append(f"Labels still given, of {name}: {percent(old)} before, {percent(new)} after.")
    return lines


def _range(low: float | None, high: float | None) -> str:
    return f"{interval(low, high)} with 95 % certainty" if low is not None else "no interval"
