"""The section on memorization that a Hugging Face model card wants, in the order of that template's evaluation part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import interval, percent
from memaudit.report import figures, story
from memaudit.report.markdown import code, table
from memaudit.report.words import MAX_COMMAND, outside

if TYPE_CHECKING:
    from memaudit.findings import DataSource
    from memaudit.report.document import Report
    from memaudit.report.verified import Verification


def of_report(report: Report) -> str:
    """The section of a scan, ending in one newline."""
    sets = [("flagged", report.data.flagged), ("reference", report.data.reference)]
    rows = [(f.name, f.value, f.detail) for f in figures.figures(report)]
    policy = ", ".join(f"{code(name)}: {code(value)}" for name, value in report.gate.policy.items())
    met = "not met" if report.gate.failed else "met" if report.status == "complete" else "incomplete, not judged"
    return _section(
        story.summary(report),
        sets,
        "Which flagged training examples the model gives with a label that what does not know it does not support, in "
        "which units that sits, and what cutting those costs.",
        table(("figure", "value", ""), rows),
        f"Policy: {policy}; {met}.",
        story.LIMITS,
        report,
    )


def of_verification(found: Verification) -> str:
    """The section of a verification, ending in one newline."""
    from memaudit.report.verification import words

    sets = [("flagged", found.flagged), ("unseen", found.unseen), ("reference", found.reference)]
    return _section(
        words.headline(found) + ". " + words.summary(found),
        sets,
        "Membership: whether the model's answers tell flagged examples from unseen ones of the same kinds.",
        table(words.HEAD, words.figures(found)),
        "",
        words.limits(found.membership),
        found,
    )


def _section(
    summary: str,
    sets: list[tuple[str, DataSource]],
    metrics: str,
    results: str,
    policy: str,
    limits: tuple[str, ...],
    made: Report | Verification,
) -> str:
    blocks = [
        "## Evaluation: memorization of training examples",
        "### Testing Data, Factors & Metrics",
        "#### Testing Data",
        table(
            ("set", "source", "examples", "sha256", "accuracy"),
            ((name, code(one.source), f"{one.count:,}", code(one.sha256), _accuracy(one)) for name, one in sets),
        ),
        "#### Metrics",
        metrics,
        "### Results",
        results,
        policy,
        "#### Summary",
        outside(summary, 2000),
        "### Limitations of this evaluation",
        "\n".join(f"- {line}" for line in limits),
        (
            f"Model {code(made.model.path)}, SHA-256 {code(made.model.sha256)}. Made by {outside(made.tool.name)} "
            f"{outside(made.tool.version)}: {code(made.command, MAX_COMMAND)}"
        ),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _accuracy(one: DataSource) -> str:
    return percent(one.accuracy) + (f" ({interval(one.low, one.high)})" if one.low is not None else "")
