"""A verification as text: for a terminal, Markdown, workflow commands, and a table of the flagged examples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.report.github import workflow_command
from memaudit.report.markdown import code, table
from memaudit.report.table import Cell, Table
from memaudit.report.verification import words
from memaudit.report.words import MAX_COMMAND, MAX_MESSAGE, named, outside
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Scored
    from memaudit.report.verified import Verification

SIGNS = {"pass": "✅", "fail": "❌"}
WARNINGS, SLICES, EXAMPLES = 50, 30, 100


def markdown(found: Verification) -> str:
    """Finding, power, every test, slices, examples and provenance, ending in one newline."""
    said = found.membership
    sign = "⚠️" if found.status == "incomplete" else SIGNS[found.verdict]
    blocks = [
        f"# {sign} {words.headline(found)}: {code(found.model.path)}",
        words.summary(found),
        "\n".join(f"- {code(reason, MAX_MESSAGE)}" for reason in found.gate.failed),
        "\n".join(f"- ⚠️ {code(w.message, MAX_MESSAGE)} ({code(w.code)})" for w in found.warnings[:WARNINGS]),
        "## Tests",
        table(words.HEAD, words.figures(found)),
        "\n".join(f"- **{a.name}**: {words.TESTS.get(a.name, '')}" for a in said.attacks),
        "\n".join(f"- {line}" for line in words.resolution(found)),
        _slices(found),
        "## Examples",
        table(
            ("example", "label", "share of unseen as high", "trace"),
            (_example(found, one) for one in sorted(said.examples, key=lambda one: one.share)[:EXAMPLES]),
        ),
        "## What this does not show",
        "\n".join(f"- {line}" for line in words.limits(found.membership)),
        "## Provenance",
        _sets(found),
        f"Model SHA-256 {code(found.model.sha256)}. {_made(found)}",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _made(found: Verification) -> str:
    return f"Made by {outside(found.tool.name)} {outside(found.tool.version)}: {code(found.command, MAX_COMMAND)}"


def _sets(found: Verification) -> str:
    sets = ((name, code(source), *rest) for name, source, *rest in words.sets(found))
    others = ((code(name), code(sha256), accuracy) for name, sha256, accuracy in words.others(found))
    read = table(("set", "source", "examples", "labels predicted"), sets)
    if not found.without:
        return read
    return f"{read}\n\n" + table(("trained without", "sha256", "reference accuracy"), others)


def _slices(found: Verification) -> str:
    rows = words.slices(found)[:SLICES]
    if not rows:
        return ""
    cells = ((code(by), code(value), *rest) for by, value, *rest in rows)
    return "## Slices\n\n" + table(words.SLICE_HEAD, cells)


def _example(found: Verification, one: Scored) -> tuple[str, ...]:
    name, label = code(named(one.example)), code(_label(found, one.example.label))
    return name, label, f"{one.share:.3f}", "yes" if one.traced else "–"


def _label(found: Verification, index: int) -> str:
    return found.class_names[index] if index < len(found.class_names) else str(index)


def terminal(found: Verification, paths: Sequence[Path] = ()) -> str:
    """What a person reads first, in plain text."""
    width = max(len(row[0]) for row in words.figures(found))
    lines = [f"{outside(words.headline(found))}  {outside(found.model.path)}", words.summary(found), ""]
    lines += [f"failed: {outside(reason, MAX_MESSAGE)}" for reason in found.gate.failed]
    lines += [f"warning: {outside(w.message, MAX_MESSAGE)}" for w in found.warnings[:WARNINGS]]
    head = ("test", "AUC", "TPR at 0.1% FPR", "at 1%", "at 5%", "", "eps ≥", "p")
    for name, area, *rates, _, epsilon, p in (head, *words.figures(found)):
        lines.append(
            f"{name:<{width}}  {area:<20}  " + "  ".join(f"{rate:<18}" for rate in rates) + f"  {epsilon:<6}  {p}"
        )
    lines += ["", *words.resolution(found), ""]
    lines += [f"wrote {outside(path)}" for path in paths]
    return "\n".join(lines) + "\n"


def show(found: Verification, paths: Sequence[Path]) -> None:
    """Print it."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(terminal(found, paths).encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def github(found: Verification) -> str:
    """One workflow command: an error where the policy is not met."""
    level = "error" if found.gate.failed else "warning" if found.status == "incomplete" else "notice"
    return workflow_command(level, f"memaudit: {words.headline(found)}", words.summary(found)) + "\n"


def rows(found: Verification) -> Table:
    """The flagged examples, one a row: who, what the model says, every test, and the user's columns."""
    tests = [attack.name for attack in found.membership.attacks]
    own = list(dict.fromkeys(name for one in found.membership.examples for name in one.example.columns))
    head = ("finding_id", "example_id", "declared_id", "source", "note", "row", "label", "true_label", "predicted")
    names = (*head, "confidence", "share_of_unseen", "traced", *tests)
    return Table(
        (*names, *(clean(f"manifest_{name}" if name in names else name) for name in own)),
        [
            tuple(clean(cell) if isinstance(cell, str) else cell for cell in cells)
            for cells in _cells(found, tests, own)
        ],
    )


def _cells(found: Verification, tests: Sequence[str], own: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    for one in found.membership.examples:
        yield (
            one.id,
            one.example.id,
            one.example.declared_id,
            one.example.source,
            one.example.note,
            one.example.index,
            one.example.label,
            one.example.true_label,
            one.before.prediction,
            one.before.confidence,
            one.share,
            str(one.traced).lower(),
            *(one.scores[test] for test in tests),
            *(one.example.columns.get(name) for name in own),
        )
