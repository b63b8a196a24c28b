"""The report as GitHub workflow commands, which a runner shows beside the lines of a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.report import story
from memaudit.report.words import OUTCOMES, accepted, label
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Finding
    from memaudit.report.document import Report

# A runner shows ten annotations of a level per step and drops the rest without a word.
MAX_ANNOTATIONS = 9


def render(report: Report) -> str:
    """One command per line: the verdict first, then the memorized examples that nobody has accepted."""
    state = story.state(report)
    level = "notice" if state == "pass" else "error"
    settled = accepted(report)
    active = [f for f in report.findings if f.memorized and f.id not in settled]
    lines = [workflow_command(level, f"memaudit: {story.HEADLINES[state]}", story.summary(report))]
    each = "error" if state == "fail" else "warning"
    lines += [_annotation(each, report, finding) for finding in active[:MAX_ANNOTATIONS]]
    rest = len(active) - MAX_ANNOTATIONS
    if rest > 0:
        lines.append(workflow_command("notice", "memaudit", f"{rest:,} further memorized examples in the report"))
    return "\n".join(lines) + "\n"


def _annotation(level: str, report: Report, finding: Finding) -> str:
    example = finding.example
    word = OUTCOMES[finding.outcome][0]
    message = f"{clean(example.source)} is memorized with label {label(report, example.label)} ({word})"
    if example.line is None:
        return workflow_command(level, "memaudit: memorized example", message)
    return workflow_command(level, "memaudit: memorized example", message, report.data.flagged.source, example.line)


def workflow_command(level: str, title: str, message: str, file: str = "", line: int = 0) -> str:
    """One line that GitHub reads from a job's output; whatever the texts hold, they cannot end it."""
    properties = {"file": file, "line": str(line), "title": title} if file else {"title": title}
    text = ",".join(f"{name}={_property(clean(value))}" for name, value in properties.items())
    return f"::{level} {text}::{_data(clean(message, 1000))}"


def _data(text: str) -> str:
    """Escaped as a command's message; `##[` would start a command of the older kind."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("##[", "##\\x5b")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
