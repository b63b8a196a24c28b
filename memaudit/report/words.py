"""The vocabulary every view shares: numbers, outcomes and names as a reader sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.findings import Outcome
from memaudit.text import MAX_LENGTH, clean

if TYPE_CHECKING:
    from memaudit.findings import DataSource, Example, Neighbour, SeriesPoint
    from memaudit.report.document import Report

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


def label(report: Report, index: int) -> str:
    """The class's name, or its number where the report has no name for it."""
    names = report.data.class_names
    return clean(names[index]) if index < len(names) else str(index)


# What is said of a memorized example that does not count.
ACCEPTED = {"": "", "waived": "waived", "known": "known from the baseline"}


def accepted(report: Report) -> dict[str, str]:
    """Why a memorized finding does not count, by its id: `waived`, or `known` from the baseline."""
    return dict.fromkeys(report.gate.known, "known") | dict.fromkeys(report.gate.waived, "waived")


def named(example: Example | Neighbour) -> str:
    """Where an example came from, and the id its owner gave it: `train/7.png`, `row 7 (id p-17)`."""
    where = clean(example.source) if example.source != "array" else f"row {example.index}"
    return f"{where} (id {clean(example.declared_id)})" if example.declared_id else where


# Reference examples that a p-value is a share of, at most (`audits.atypicality.CALIBRATION`).
CALIBRATION = 2000


def p_value(report: Report, p: float) -> str:
    """`p 0.012`, or `p < 0.001`: below what the reference can show, or three digits, only the bound is said."""
    reference = report.data.reference.count
    seen = reference // max(1, -(-reference // CALIBRATION))
    floor = max(0.001, -(-1000 // max(1, seen)) / 1000)
    return f"p < {floor:.3f}" if p < floor else f"p {p:.3f}"


def size_of(source: DataSource) -> str:
    """How many examples a set has, and of how many they were drawn: `10,000 of 1,281,167, drawn by label`."""
    return f"{source.count:,}" + (f" of {source.drawn_from:,}, drawn by label" if source.drawn_from else "")


def checkpoint(point: SeriesPoint) -> str:
    """What a checkpoint is called, and the file it is, where its name does not say so: `epoch 3, ep3.pt`."""
    name, file = clean(point.checkpoint), clean(point.file)
    return f"{name}, {file}" if file and not file.startswith(name) else name


def short(identity: str) -> str:
    """The first characters of an id."""
    return clean(identity[:SHORT_ID])


def outside(value: object, limit: int = MAX_LENGTH) -> str:
    """An outside string for a stream that a CI runner reads: it cannot become a workflow command.

    Runners act on `::name::` at the start of a line, which wrapping can produce, and on `##[name]` anywhere.
    """
    return clean(value, limit).replace("::", ":\\x3a").replace("##[", "##\\x5b")
