"""The comparison of two reports, for a terminal or a log, a pull request, and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import count
from memaudit.report import json
from memaudit.report.markdown import code, table
from memaudit.report.words import OUTCOMES, named, outside, short

if TYPE_CHECKING:
    from memaudit.report.compare import Change, Diff

SIGNS = {"new": "+", "gone": "-", "unchanged": "="}
# Lines of one kind; all are in the JSON.
MOST = 50


def text(diff: Diff) -> str:
    """The counts, then a line for each new and gone example, and for each unchanged one whose outcome moved."""
    lines = [_counts(diff), *_notes(diff)]
    for status in SIGNS:
        found = [c for c in diff.changes if c.status == status and (status != "unchanged" or c.before != c.after)]
        for change in found[:MOST]:
            lines.append(f"{SIGNS[status]} {short(change.id)}  {outside(named(change.example))}  {_what(change)}")
        if len(found) > MOST:
            lines.append(f"{SIGNS[status]} and {len(found) - MOST:,} more (all with -f json)")
    return "\n".join(lines) + "\n"


def markdown(diff: Diff) -> str:
    """The same as GitHub-flavoured Markdown."""
    rows = [
        [SIGNS[c.status], code(short(c.id)), code(named(c.example)), _what(c)]
        for c in diff.changes
        if c.status != "unchanged" or c.before != c.after
    ]
    parts = [f"**{_counts(diff)}**", *_notes(diff)]
    if rows:
        parts.append(table(["", "id", "source", ""], rows[: 2 * MOST]))
    if len(rows) > 2 * MOST:
        parts.append(f"and {len(rows) - 2 * MOST:,} more")
    return "\n\n".join(parts) + "\n"


def data(diff: Diff) -> str:
    """Everything, as JSON."""
    return json.encode(diff.model_dump(mode="json"), indent=2) + "\n"


def _counts(diff: Diff) -> str:
    new, gone, unchanged = (diff.counts[status] for status in ("new", "gone", "unchanged"))
    whole = f"{new:,} new, {gone:,} gone, {unchanged:,} unchanged"
    if not new and not gone:
        return f"unchanged: {count(unchanged, 'memorized example')} ({whole})"
    return f"memorized examples: {whole}"


def _notes(diff: Diff) -> list[str]:
    notes = []
    if not diff.complete:
        notes.append("one of the audits is incomplete: what is gone may only not have been looked at")
    if diff.old["flagged"] != diff.new["flagged"]:
        notes.append("the flagged sets differ")
    if diff.old["sha256"] == diff.new["sha256"]:
        notes.append("both reports are of the same checkpoint")
    return notes


def _what(change: Change) -> str:
    before, after = (OUTCOMES[o][0] if o else "" for o in (change.before, change.after))
    moved = f"{before} -> {after}" if before and after and before != after else after or before
    return f"{moved}; {change.reason}" if change.reason else moved
