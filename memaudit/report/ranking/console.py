"""A ranking on a terminal: its result, the head of the list, what to expect of it, where the files are."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.numbers import interval, percent
from memaudit.report.console import PLAIN_WIDTH, plain_table, printed, terminal_width
from memaudit.report.ranking import words
from memaudit.report.words import MAX_COMMAND, MAX_MESSAGE, named, outside

if TYPE_CHECKING:
    from rich.console import RenderableType

    from memaudit.report.ranked import Ranking

ROWS, WARNINGS = 10, 20


def show(ranking: Ranking, paths: Sequence[Path] = (), following: str = "") -> None:
    """Print `ranking` to stdout: in colour on a terminal, as plain text elsewhere and in CI.

    Args:
        following: the command that goes on from here, whose paths are those of this machine; by default the document's.
    """
    stream = sys.stdout
    on_terminal = stream.isatty() and not os.environ.get("CI")
    width = terminal_width() if on_terminal else PLAIN_WIDTH
    text = render(ranking, paths, width, color=on_terminal, following=following)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def render(
    ranking: Ranking,
    paths: Sequence[Path] = (),
    columns: int = PLAIN_WIDTH,
    *,
    color: bool = False,
    following: str = "",
) -> str:
    """What `show` prints. Outside strings never pass through rich's markup."""
    return printed(
        [_summary(ranking), _warnings(ranking), _head(ranking), _cut_offs(ranking), _paths(ranking, paths, following)],
        columns,
        color=color,
    )


def _summary(ranking: Ranking) -> RenderableType:
    from rich.text import Text

    text = Text()
    incomplete = "! incomplete: " if ranking.status == "incomplete" else ""
    text.append(f"{incomplete}{words.headline(ranking)}", style="bold yellow" if incomplete else "bold")
    text.append(f"  {outside(ranking.model.path)}\n", style="dim")
    text.append(words.summary(ranking))
    if known := words.known(ranking):
        text.append(f"\n{known}")
    return text


def _warnings(ranking: Ranking) -> RenderableType | None:
    from rich.text import Text

    lines = [
        Text.assemble(("warning ", "yellow"), outside(w.message, MAX_MESSAGE)) for w in ranking.warnings[:WARNINGS]
    ]
    return Text("\n").join(lines) if lines else None


def _head(ranking: Ranking) -> RenderableType:
    from rich.text import Text

    table = plain_table(
        ("most memorized", "left"), ("label", "left"), ("suggested", "left"), ("estimate", "right"), ("wrong", "right")
    )
    for one in ranking.ranked[:ROWS]:
        table.add_row(
            Text(outside(named(one.example)), style="cyan"),
            Text(outside(words.label(ranking, one.example.label))),
            Text(f"{outside(words.label(ranking, one.suggested_label))} ({percent(one.support)})"),
            Text(f"{one.estimate:.3f}"),
            Text(percent(one.wrong)),
        )
    return table


def _cut_offs(ranking: Ranking) -> RenderableType:
    from rich.text import Text

    known = any(c.known_wrong is not None for c in ranking.cut_offs)
    table = plain_table(
        ("the first", "right"), ("wrong labels expected", "left"), *((("known wrong", "right"),) if known else ())
    )
    for c in ranking.cut_offs:
        cells = [Text(f"{c.top:,}"), Text(f"{percent(c.wrong)} ({interval(c.low, c.high)})")]
        table.add_row(*cells, *([Text(percent(c.known_wrong))] if known else []))
    return table


def _paths(ranking: Ranking, paths: Sequence[Path], following: str) -> RenderableType | None:
    from rich.text import Text

    if not paths:
        return None
    lines = [Text(f"wrote {outside(path)}") for path in paths]
    if words.flags_some(ranking):
        lines.append(Text(f"next: {outside(following or words.following(ranking), MAX_COMMAND)}", style="dim"))
    return Text("\n").join(lines)
