"""The officer's page as data, and the parts that every such page has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.numbers import count, interval
from memaudit.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from memaudit.findings import DataSource, ModelInfo, ReportWarning

# Policies and warnings that a sheet holds; the report has all.
MOST = 6

ADVICE = "This page is technical evidence. It is no legal advice and decides no legal question."
SOURCES = (
    (
        "EDPB, Opinion 28/2024 on certain data protection aspects related to the processing of personal data in the "
        "context of AI models, 17 December 2024."
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


def points(*, likelihood: str, resistance: str, data: str) -> list[Point]:
    """What the sources ask for, and where it stands."""
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
            "ISO/IEC 42001, A.6.2.4", "verification and validation, with criteria", "the rule under “What was asked”"
        ),
        Point("ISO/IEC 42001, A.6.2.7", "technical documentation", "this page and report"),
        Point("ISO/IEC 42001, A.7.4", "quality of data", data),
    ]


RULES = {
    "max_memorized": "at most {} memorized examples that nobody has accepted",
    "max_localized": "at most {} memorized and localized examples that nobody has accepted",
    "min_reference_accuracy": "right on at least {} of the comparison examples, as a share",
    "no_evidence": "no sign that the model was trained on them",
    "max_tpr_at_fpr": "where at most {} of the unseen are accused wrongly, at most {} of the flagged recognised",
}
"""A policy's rules in plain words."""


def policy(policy: dict[str, str], failed: list[str]) -> list[str]:
    """The rules, and whether they are met."""
    rules = [
        RULES.get(name, clean(name).replace("{", "(").replace("}", ")") + " {}").format(*clean(value).split(":", 1), "")
        for name, value in list(policy.items())[:MOST]
    ]
    met = "It is not met." if failed else "It is met."
    return [f"The rule it is judged by: {'; '.join(rules)}. {met}"] if rules else []


def model(model: ModelInfo) -> list[tuple[str, str]]:
    """What says which model it is."""
    return [
        ("Model file", clean(model.path) or "in memory"),
        ("its SHA-256 (fingerprint)", clean(model.sha256) or "none: it was in memory"),
        ("Kind of model", clean(model.architecture or "unnamed")),
    ]


def examples(name: str, source: DataSource) -> list[tuple[str, str]]:
    """What says which examples these are."""
    return [(name, f"{clean(source.source)}: {count(source.count, 'example')}, SHA-256 {clean(source.sha256)}")]


def run(volatile: Mapping[str, object], by: str, version: str, command: str) -> list[tuple[str, str]]:
    """When, by whom and with what."""
    return [
        ("Date (UTC)", clean(volatile.get("started", "not recorded")).replace("T", " ").removesuffix("Z")),
        ("Run by", clean(by) or "not given"),
        ("With", f"memaudit {clean(version)}: {clean(command, 400)}"),
    ]


def warned(warnings: Sequence[ReportWarning]) -> list[str]:
    """The report's own warnings, which are written for technical readers."""
    return [f"Technical note: {clean(warning.message, 400)}" for warning in warnings[:MOST]]


def certain(low: float | None, high: float | None) -> str:
    """An interval in words."""
    return f"{interval(low, high)} with 95 % certainty" if low is not None else "no interval"
