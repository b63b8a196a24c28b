"""What a ranking says in sentences; every view uses the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memaudit.findings.ranking import Standing
from memaudit.numbers import count, interval, percent
from memaudit.report.words import MAX_COMMAND
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.ranked import Ranking

STANDINGS: dict[Standing, tuple[str, str, str]] = {
    Standing.MEMORIZED: (
        "memorized",
        "●",
        "the model gives the label, and the others do not support it: wrong labels mostly, and examples like no other",
    ),
    Standing.RESISTED: ("resisted", "◇", "the others do not support the label, and the model does not give it either"),
    Standing.LEARNED: ("learned", "·", "the model gives the label also where it was taught without the example"),
    Standing.UNDECIDED: ("undecided", "?", "neither: the evidence is not strong enough to call it"),
}
"""The word for each standing, its sign and what it means."""

LIMITS = (
    "A wrong label that the model also gives unseen is learned, not memorized: only near-duplicates show it here.",
    "A rightly labelled, ordinary example leaves no trace: not being listed does not prove it is not in the model.",
    "Shares of wrong labels assume errors on any example; where people confuse classes expect two or three times more.",
    "Hard examples with right labels are listed too: what was taught without them had less to learn from.",
)


@dataclass(frozen=True)
class Figure:
    """One number of the summary."""

    name: str
    value: str
    detail: str
    how: str


def label(ranking: Ranking, index: int) -> str:
    """The class's name, or its number where there is no name for it."""
    names = ranking.class_names
    return clean(names[index]) if index < len(names) else str(index)


def headline(ranking: Ranking) -> str:
    """The finding in a few words."""
    called = ranking.shares.standings.get(Standing.MEMORIZED, 0)
    if not called:
        return "No label is memorized beyond doubt"
    return f"{count(called, 'label')} memorized, of {ranking.shares.examples:,}"


def summary(ranking: Ranking) -> str:
    """What the data's error is likely to be, and what the model merely memorized."""
    shares = ranking.shares
    data = (
        f"About {percent(shares.wrong)} of the labels are probably wrong "
        f"({interval(shares.wrong_low, shares.wrong_high)}); more, where people confused classes."
    )
    model = (
        f"The model gives {percent(shares.fitted)} of all labels, and {percent(shares.unseen)} where it was taught "
        f"without them: {percent(shares.memorized)} ({interval(shares.memorized_low, shares.memorized_high)}) of its "
        "answers rest on having seen the very example."
    )
    return f"{data} {model}"


def known(ranking: Ranking) -> str:
    """How well the ranking does, where true labels are declared; empty where none are."""
    shares = ranking.shares
    if not shares.known:
        return ""
    said = (
        f"True labels are declared for {count(shares.known, 'example')}: {shares.known_wrong:,} labels are wrong, "
        f"{shares.known_learned:,} of them learned rather than memorized."
    )
    return (
        said if shares.auroc is None else f"{said} The estimate tells wrong from right with AUROC {shares.auroc:.4f}."
    )


def figures(ranking: Ranking) -> list[Figure]:
    """The numbers of the summary."""
    shares = ranking.shares
    called, resisted = (shares.standings.get(s, 0) for s in (Standing.MEMORIZED, Standing.RESISTED))
    return [
        Figure(
            "Labels called memorized",
            f"{called:,}",
            f"{percent(called / shares.examples)} of {shares.examples:,}",
            "at most 5% of them are expected to have a label that fits",
        ),
        Figure(
            "Wrong labels",
            percent(shares.wrong),
            f"95% interval {interval(shares.wrong_low, shares.wrong_high)}",
            "of all labels, estimated from what the others say of each",
        ),
        Figure(
            "Memorized share",
            percent(shares.memorized),
            f"95% interval {interval(shares.memorized_low, shares.memorized_high)}",
            "of the labels predicted, less their mean probability without the example",
        ),
        Figure(
            "Wrong but resisted",
            f"{resisted:,}",
            "not given by the model",
            "probably wrong labels that the model did not take over",
        ),
        Figure(
            "Near-duplicates at odds",
            f"{ranking.twins_in_all:,}",
            "pairs with different labels",
            "at least one label of each pair is wrong, memorized or not",
        ),
    ]


def flags_some(ranking: Ranking) -> bool:
    """Whether there is an example that a scan would look at: `flagged.csv` may be empty."""
    standings = ranking.shares.standings
    return bool(standings.get(Standing.MEMORIZED, 0) or standings.get(Standing.UNDECIDED, 0))


def following(ranking: Ranking) -> str:
    """The command that says where in the network the flagged ones sit."""
    if ranking.following:
        return clean(ranking.following, MAX_COMMAND)
    model, data = clean(ranking.model.path) or "MODEL", clean(ranking.data.source)
    return f"memaudit scan {model} --data {data} --flagged flagged.csv"
