"""The report on a terminal: the verdict in words, one table of counts, the most shared units, where the files are."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from memaudit.findings import Outcome
from memaudit.numbers import percent
from memaudit.report import figures, opening, story, timeline
from memaudit.report.rows import neuron_rows
from memaudit.report.words import MAX_MESSAGE, OUTCOMES, SYMBOLS, accepted, label, named, outside

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table

    from memaudit.report.document import Report

# Lines in a log or a pipe are this wide, whatever machine wrote them; terminals use their own width up to it.
PLAIN_WIDTH = 100
TOP_NEURONS = 8
MAX_WARNINGS = 20
MAX_FINDINGS = 20
_STYLES = {"pass": "bold green", "fail": "bold red", "incomplete": "bold yellow"}
_SIGNS = {"pass": "✓", "fail": "✗", "incomplete": "!"}
_OUTCOME_STYLES = {Outcome.LOCALIZED: "cyan", Outcome.ENTANGLED: "magenta", Outcome.DIFFUSE: "yellow"}


def show(report: Report, paths: Sequence[Path] = (), file: TextIO | None = None, brief: bool = False) -> None:
    """Print `report` to `file` (stdout by default): in colour on a terminal, as plain text elsewhere and in CI.

    Args:
        report: what to print.
        paths: the files that were written, named last.
        brief: the verdict and the findings it rests on, instead of everything.
        file: where to; characters its encoding lacks become `?`. Its `OSError`s are the caller's.
    """
    stream = file or sys.stdout
    on_terminal = stream.isatty() and not os.environ.get("CI")
    text = render(report, paths, width=terminal_width() if on_terminal else PLAIN_WIDTH, color=on_terminal, brief=brief)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def render(
    report: Report,
    paths: Sequence[Path] = (),
    *,
    width: int = PLAIN_WIDTH,
    color: bool = False,
    brief: bool = False,
) -> str:
    """What `show` prints. Outside strings never pass through rich's markup, emoji codes or highlighter."""
    blocks = [_verdict(report), _warnings(report)]
    if brief:
        blocks.append(_active(report))
    else:
        blocks += [_counts(report), _neurons(report), _known(report), _layers(report), _not_run(report)]
    blocks.append(_paths(paths))
    return printed(blocks, width, color=color)


def printed(blocks: Sequence[RenderableType | None], columns: int, *, color: bool) -> str:
    """What rich makes of `blocks`, an empty line between two, with none of its markup."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(
        file=text,
        width=columns,
        force_terminal=color,
        no_color=not color or bool(os.environ.get("NO_COLOR")),
        color_system="truecolor" if color else None,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
        _environ={},
    )
    for block in blocks:
        if block is not None:
            console.print(block)
            console.print()
    lines = text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def terminal_width() -> int:
    """Columns of this terminal, within reason."""
    import shutil

    return max(40, min(PLAIN_WIDTH, shutil.get_terminal_size().columns))


def _verdict(report: Report) -> RenderableType:
    from rich.text import Text

    state = story.state(report)
    text = Text()
    text.append(f"{_SIGNS[state]} {story.HEADLINES[state]}", style=_STYLES[state])
    text.append(f"  {outside(report.model.path)}\n", style="dim")
    text.append(story.summary(report))
    if settled := story.not_counted(report):
        text.append(f" {outside(settled, MAX_MESSAGE)}")
    if cost := opening.cost(report):
        text.append(f"\n{cost}")
    if warned := opening.caveat(report):
        text.append(f"\n{warned}", style="yellow")
    for rule in story.rules(report):
        mark = {True: "✓", False: "✗", None: "?"}[rule.met]
        limit = f": {outside(rule.limit)}" if rule.limit else ""
        text.append(f"\n  {mark} ", style={True: "green", False: "red", None: "yellow"}[rule.met])
        text.append(f"{outside(rule.name)}{limit} ({outside(rule.word, MAX_MESSAGE)})")
    return text


def _warnings(report: Report) -> RenderableType | None:
    from rich.text import Text

    if not report.warnings:
        return None
    lines = [
        Text.assemble(("warning ", "yellow"), outside(w.message, MAX_MESSAGE)) for w in report.warnings[:MAX_WARNINGS]
    ]
    rest = len(report.warnings) - MAX_WARNINGS
    if rest > 0:
        lines.append(Text(f"and {rest:,} further warnings in the report", style="dim"))
    return Text("\n").join(lines)


def _active(report: Report) -> RenderableType | None:
    """The memorized findings that count, with the ids that waivers take."""
    from rich.text import Text

    settled = accepted(report)
    found = [row for row in report.findings if row.memorized and row.id not in settled]
    if not found:
        return None
    table = plain_table(("memorized", "left"), ("example", "left"), ("label", "left"), ("outcome", "left"))
    for finding in found[:MAX_FINDINGS]:
        example = finding.example
        outcome = Text(OUTCOMES[finding.outcome][0], style=_OUTCOME_STYLES.get(finding.outcome, ""))
        table.add_row(
            Text(outside(finding.id), style="cyan"),
            Text(outside(named(example))),
            Text(outside(label(report, example.label))),
            outcome,
        )
    rest = len(found) - MAX_FINDINGS
    if rest > 0:
        table.add_row(Text(f"and {rest:,} more", style="dim"), Text(), Text(), Text())
    return table


def _counts(report: Report) -> RenderableType:
    from rich.text import Text

    total = report.summary
    table = plain_table(("outcome", "left"), ("examples", "right"), ("share", "right"), ("meaning", "left"))
    for outcome, (word, meaning) in OUTCOMES.items():
        number = total.outcomes.get(outcome, 0)
        if outcome is Outcome.NOT_SEARCHED and not number:
            continue
        share = percent(number / total.flagged) if total.flagged else ""
        name = Text(f"{SYMBOLS[outcome]} {word}", style=_OUTCOME_STYLES.get(outcome, "") if number else "dim")
        table.add_row(name, Text(f"{number:,}"), Text(share), Text(meaning, style="dim"))
    return table


def _neurons(report: Report) -> RenderableType | None:
    from rich.text import Text

    rows = neuron_rows(report, TOP_NEURONS)
    if not rows:
        return None
    table = plain_table(
        ("top units", "left"), ("kind", "left"), ("examples", "right"), ("accuracy without it", "right")
    )
    for row in rows:
        serves = Text(f"{len(row.erases):,}")
        table.add_row(Text(outside(row.name), style="cyan"), Text(row.kind), serves, Text(row.reference))
    rest = len(report.neurons) - TOP_NEURONS
    if rest > 0:
        table.add_row(Text(f"and {rest:,} more", style="dim"), Text(), Text(), Text())
    return table


def _known(report: Report) -> RenderableType | None:
    from rich.text import Text

    text = figures.tied_dropout(report)
    return Text(text) if text else None


def _layers(report: Report) -> RenderableType | None:
    """The verdict on each layer, and when the flagged labels were learned."""
    from rich.console import Group
    from rich.text import Text

    learning = timeline.learning(report)
    rows = [row for row in timeline.judged_layers(report) if row.symbol]
    if not rows:
        return Text(outside(learning, MAX_MESSAGE)) if learning else None
    names = ("flagged back", "matched back", "reference")
    numbers: list[tuple[str, JustifyMethod]] = [(name, "right") for name in names]
    table = plain_table(("layer", "left"), ("verdict", "left"), *numbers)
    for row in rows:
        style = {"critical": "red", "undecided": "yellow"}.get(row.verdict, "")
        table.add_row(
            Text(outside(row.layer), style="cyan"),
            Text(f"{row.symbol} {row.verdict}", style=style),
            Text(f"{row.flagged} {row.interval}".strip()),
            Text(row.matched),
            Text(row.reference),
        )
    lines = [outside(text, MAX_MESSAGE) for text in (timeline.summary(report), learning) if text]
    return Group(Text("\n".join(lines)), Text(""), table)


def plain_table(*columns: tuple[str, JustifyMethod]) -> Table:
    """A table without a frame; columns are (name, alignment)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, justify in columns:
        table.add_column(Text(name), justify=justify, overflow="fold")
    return table


def _not_run(report: Report) -> RenderableType | None:
    from rich.text import Text

    missing = story.not_run(report)
    return Text(f"Not run: {'; '.join(missing)}.", style="dim") if missing else None


def _paths(paths: Sequence[Path]) -> RenderableType | None:
    from rich.text import Text

    return Text("\n").join([Text(f"wrote {outside(path)}") for path in paths]) if paths else None
