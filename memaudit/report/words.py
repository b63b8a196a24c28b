"""The vocabulary every view shares: numbers, outcomes and names as a reader sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.findings import Outcome
from memaudit.text import MAX_LENGTH, clean

if TYPE_CHECKING:
    from memaudit.findings import Report

MISSING = "–"
# Ids are long hashes; ten characters tell a thousand findings apart and the full id is one click or column away.
SHORT_ID = 10
# A name is cut at MAX_LENGTH; a message or a command may say more.
MAX_MESSAGE = 600
MAX_COMMAND = 4_000

OUTCOMES: dict[Outcome, tuple[str, str]] = {
    Outcome.LOCALIZED: ("localized", "a few units hold it: cutting them suppresses the label, random units do not"),
    Outcome.ENTANGLED: ("entangled", "the label can be suppressed, but the reference pays or random units do it too"),
    Outcome.DIFFUSE: ("diffuse", "not suppressed within the allowed number of units"),
    Outcome.NOT_FITTED: ("not fitted", "the model does not predict the flagged label"),
    Outcome.NOT_SEARCHED: ("not searched", "fitted; which units hold it was not asked for"),
}
"""The word for each outcome, and what it means."""

SYMBOLS = {
    Outcome.LOCALIZED: "●",
    Outcome.ENTANGLED: "◐",
    Outcome.DIFFUSE: "○",
    Outcome.NOT_FITTED: "·",
    Outcome.NOT_SEARCHED: "–",
}


def percent(rate: float | None) -> str:
    """`0.9861` as `98.6%`. Only an exact 1 prints as 100.0%, only an exact 0 as 0.0%."""
    if rate is None:
        return MISSING
    rounded = round(100 * rate, 1)
    if rounded == 100 and rate < 1:
        return ">99.9%"
    return "<0.1%" if rounded == 0 and rate > 0 else f"{rounded:.1f}%"


def interval(low: float | None, high: float | None) -> str:
    """`97.1–98.9%`, or an empty string where no interval was measured."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}%"


def points(before: float, after: float) -> str:
    """A change of a rate in percentage points, signed: `−0.4`."""
    change = round(100 * (after - before), 1)
    return f"{'+' if change > 0 else '−' if change < 0 else '±'}{abs(change):.1f}"


def number(value: float | None) -> str:
    """`3`, `2.5`, or a dash for a figure that was not measured."""
    return MISSING if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """`1 unit`, `2,000 units`."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def label(report: Report, index: int) -> str:
    """The class's name, or its number where the report has no name for it."""
    names = report.data.class_names
    return clean(names[index]) if index < len(names) else str(index)


# What is said of a memorized example that does not count.
ACCEPTED = {"": "", "waived": "waived", "known": "known from the baseline"}


def accepted(report: Report) -> dict[str, str]:
    """Why a memorized finding does not count, by its id: `waived`, or `known` from the baseline."""
    return dict.fromkeys(report.gate.known, "known") | dict.fromkeys(report.gate.waived, "waived")


def short(identity: str) -> str:
    """The first characters of an id."""
    return clean(identity[:SHORT_ID])


def outside(value: object, limit: int = MAX_LENGTH) -> str:
    """An outside string for a stream that a CI runner reads: it cannot become a workflow command.

    Runners act on `::name::` at the start of a line, which wrapping can produce, and on `##[name]` anywhere.
    """
    return clean(value, limit).replace("::", ":\\x3a").replace("##[", "##\\x5b")
