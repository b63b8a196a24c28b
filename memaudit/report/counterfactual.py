"""What models without the flagged examples say of them, as rows of text for every view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import MISSING, count, interval, percent
from memaudit.report.words import label, named
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Counterfactual, Counterfactuals, Finding, Share
    from memaudit.report.document import Report

HEAD = ("example", "label", "rests on", "with it", "without it", "difference", "support", "answer without")
CUT = "cut gives it"
ORDER = (
    "Those first whose label the models without it support least: by its margin, of an image on average over moved, "
    "mirrored and zoomed views. Right labels of unusual examples are memorized as well, and come later."
)
WORDS = {"memorized": "memorized", "learned": "learned also without it", "not_fitted": "not fitted"}


def summary(found: Counterfactuals) -> list[str]:
    """Sentences, the most important first; no name from outside is in them."""
    models = count(len(found.models), "model")
    said = [
        (
            f"Asked of {models} trained without the flagged examples: {_share(found.memorized)} of the labels are "
            f"given only with the example, {_share(found.learned)} also without it, {_share(found.not_fitted)} never."
        ),
        f"The label's probability is {100 * found.difference:+.1f} points higher with the example "
        f"({100 * found.low:.1f} to {100 * found.high:.1f}).".replace("-", "−"),
    ]
    if len(found.models) == 1:
        said.append("One model each way is one draw: training again gives other figures for single examples.")
    if found.estimate is not None:
        said.append(
            f"The audit's own estimate, which needs no second model, correlates with that difference by "
            f"{found.estimate:.2f} ({found.estimate_low:.2f} to {found.estimate_high:.2f})."
        )
    if (brought := found.brought) is not None:
        said.append(
            f"Of the {count(brought.examples, 'memorized label')} with units, cutting those gives the answer of the "
            f"models without the example for {_share(brought.ours)}; as many random units for {_share(brought.random)}."
        )
        if brought.correlation is not None:
            said.append(
                f"Margins after the cut and without the example correlate by {brought.correlation:.2f} "
                f"({brought.correlation_low:.2f} to {brought.correlation_high:.2f}); with random units by "
                f"{MISSING if brought.random_correlation is None else f'{brought.random_correlation:.2f}'}."
            )
    return said


def models(found: Counterfactuals) -> list[tuple[str, str, str]]:
    """Name, hash and reference accuracy of each model."""
    return [
        (clean(m.path), clean(m.sha256[:16]) or MISSING, f"{percent(m.accuracy)} ({interval(m.low, m.high)})")
        for m in found.models
    ]


def rows(report: Report, most: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Names of columns, and the examples whose label rests most on themselves, one a row.

    Whether a cut gives the models' answer is a column where any was cut.
    """
    asked = [(one, finding) for finding in report.findings if (one := finding.counterfactual) is not None]
    asked.sort(key=lambda pair: (_support(pair[0]), pair[1].id))
    shown = [(_row(report, finding), one.ablated) for one, finding in asked[:most]]
    if all(ablated is None for _, ablated in shown):
        return HEAD, [row for row, _ in shown]
    words = {None: MISSING, True: "yes", False: "no"}
    return (*HEAD, CUT), [(*row, words[ablated]) for row, ablated in shown]


def _support(found: Counterfactual) -> float:
    """How much the models without it support the label; of reports that do not say so, by their probability."""
    return -found.difference if found.support_without is None else found.support_without


def _row(report: Report, finding: Finding) -> tuple[str, ...]:
    found = finding.counterfactual
    assert found is not None  # noqa: S101 - chosen so
    wide = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return (
        named(finding.example),
        label(report, finding.example.label),
        WORDS[found.held.value],
        percent(found.probability),
        percent(found.probability_without),
        f"{found.difference:+.2f}{wide}",
        MISSING if found.support_without is None else f"{found.support_without:+.1f}".replace("-", "−"),
        label(report, found.answer),
    )


def _share(found: Share) -> str:
    return f"{percent(found.rate)} ({interval(found.low, found.high)})"
