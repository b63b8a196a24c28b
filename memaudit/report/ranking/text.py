"""A ranking as text: Markdown, workflow commands, and the list that a scan takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import count, interval, percent
from memaudit.report.github import workflow_command
from memaudit.report.markdown import code, table
from memaudit.report.ranking import words
from memaudit.report.table import Table
from memaudit.report.words import MAX_COMMAND, MAX_MESSAGE, named, outside, short

if TYPE_CHECKING:
    from memaudit.report.ranked import Ranking

ROWS, PAIRS, TWINS, WARNINGS = 100, 30, 30, 50


def markdown(ranking: Ranking) -> str:
    """Summary, the head of the ranking, cut-offs, pairs of classes and near-duplicates, ending in one newline."""
    sign = "⚠️" if ranking.status == "incomplete" else "🔎"
    blocks = [
        f"# {sign} {words.headline(ranking)}: {code(ranking.model.path)}",
        words.summary(ranking),
        words.known(ranking),
        "\n".join(f"- ⚠️ {code(w.message, MAX_MESSAGE)} ({code(w.code)})" for w in ranking.warnings[:WARNINGS]),
        table(["figure", "value", ""], ([f.name, f"**{f.value}**", f.detail] for f in words.figures(ranking))),
        "## Most memorized",
        _head(ranking),
        "## What to expect of the list",
        _cut_offs(ranking),
        _pairs(ranking),
        _twins(ranking),
        "## What this does not show",
        "\n".join(f"- {line}" for line in words.LIMITS),
        f"Made by {outside(ranking.tool.name)} {outside(ranking.tool.version)}: {code(ranking.command, MAX_COMMAND)}",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def github(ranking: Ranking) -> str:
    """One workflow command: a ranking has no policy, so it is a notice, or a warning where it is incomplete."""
    level = "warning" if ranking.status == "incomplete" else "notice"
    return workflow_command(level, f"memaudit: {words.headline(ranking)}", words.summary(ranking)) + "\n"


def flagged(ranked: Table, top: int | None) -> Table:
    """The rows that `scan --flagged` takes beside the same `--data`: the first `top`, or those that are `listed`."""
    place = {name: number for number, name in enumerate(ranked.columns)}
    chosen = [ranked.rows[number] for number in ranked.listed] if top is None else ranked.rows[:top]

    def note(row: tuple[object, ...]) -> str:
        return f"discover: estimate {row[place['estimate']]}, suggests {row[place['suggested_label']]}"

    return Table(
        ("index", "true_label", "note"),
        [(row[place["index"]], row[place["true_label"]], note(row)) for row in chosen],
    )


def _head(ranking: Ranking) -> str:
    head = ["rank", "example", "source", "label", "suggested", "estimate", "p", "wrong", "standing"]
    rows = (
        [
            str(one.rank),
            code(short(one.id)),
            code(named(one.example)),
            code(words.label(ranking, one.example.label)),
            f"{code(words.label(ranking, one.suggested_label))} {percent(one.support)}",
            f"{one.estimate:.3f}",
            f"{one.p_value:.2g}",
            percent(one.wrong),
            words.STANDINGS[one.standing][0],
        ]
        for one in ranking.ranked[:ROWS]
    )
    return table(head, rows)


def _cut_offs(ranking: Ranking) -> str:
    head = ["first", "estimate at least", "wrong labels expected", "95% interval", "known to be wrong"]
    rows = (
        [
            f"{c.top:,}",
            f"{c.estimate:.3f}",
            percent(c.wrong),
            interval(c.low, c.high),
            percent(c.known_wrong),
        ]
        for c in ranking.cut_offs
    )
    return table(head, rows)


def _pairs(ranking: Ranking) -> str:
    if not ranking.pairs:
        return ""
    rows = (
        [
            code(words.label(ranking, p.given)),
            code(words.label(ranking, p.suggested)),
            f"{p.examples:,}",
            f"{p.memorized:,}",
            f"{p.wrong:.1f}",
        ]
        for p in ranking.pairs[:PAIRS]
    )
    return "## Given and suggested\n\n" + table(
        ["given", "suggested", "examples", "memorized", "wrong, expected"], rows
    )


def _twins(ranking: Ranking) -> str:
    if not ranking.twins:
        return ""
    rows = (
        [
            code(named(t.first)),
            code(words.label(ranking, t.first.label)),
            code(named(t.second)),
            code(words.label(ranking, t.second.label)),
        ]
        for t in ranking.twins[:TWINS]
    )
    title = f"## {count(ranking.twins_in_all, 'pair')} of near-duplicates with different labels"
    return f"{title}\n\n" + table(["example", "label", "near-duplicate", "label"], rows)
