"""Two reports side by side: which memorized examples are new, gone or unchanged. No torch."""

from __future__ import annotations

from typing import Literal

from memaudit.findings import Example, Finding, Outcome, Plain
from memaudit.report.document import Report

Status = Literal["new", "gone", "unchanged"]
# Why a memorized example is on one side only.
REASONS = {
    "new": ("was flagged, not memorized", "was not flagged"),
    "gone": ("flagged, no longer memorized", "no longer flagged"),
}


class Change(Plain):
    """One memorized example; units are left out of the comparison: a retrained network has others.

    Attributes:
        id: the finding's: content and label.
        before, after: its outcome in the old and the new report, where it was flagged there.
        reason: for one that is new or gone: why the other report does not count it.
    """

    id: str
    status: Status
    example: Example
    before: Outcome | None
    after: Outcome | None
    reason: str = ""


class Diff(Plain):
    """The comparison of two reports.

    Attributes:
        old, new: the models' paths and digests.
        complete: neither audit left anything out; else what is gone may only not have been looked at.
    """

    old: dict[str, str]
    new: dict[str, str]
    complete: bool
    counts: dict[Status, int]
    changes: list[Change]


def compare(old: Report, new: Report) -> Diff:
    """New ones first, then gone, then unchanged, each in its report's order."""
    before, after = ({f.id: f for f in report.findings} for report in (old, new))
    changes = [_change("new", f, before.get(f.id), f) for f in new.findings if f.memorized and not _in(before, f)]
    changes += [_change("gone", f, f, after.get(f.id)) for f in old.findings if f.memorized and not _in(after, f)]
    changes += [_change("unchanged", f, before[f.id], f) for f in new.findings if f.memorized and _in(before, f)]
    statuses: tuple[Status, ...] = ("new", "gone", "unchanged")
    return Diff(
        old=_model(old),
        new=_model(new),
        complete=old.status == new.status == "complete",
        counts={status: sum(c.status == status for c in changes) for status in statuses},
        changes=changes,
    )


def _in(findings: dict[str, Finding], finding: Finding) -> bool:
    return finding.id in findings and findings[finding.id].memorized


def _change(status: Status, shown: Finding, before: Finding | None, after: Finding | None) -> Change:
    other = before if status == "new" else after
    return Change(
        id=shown.id,
        status=status,
        example=shown.example,
        before=before.outcome if before else None,
        after=after.outcome if after else None,
        reason="" if status == "unchanged" else REASONS[status][0 if other else 1],
    )


def _model(report: Report) -> dict[str, str]:
    return {"model": report.model.path, "sha256": report.model.sha256, "flagged": report.data.flagged.sha256}
