"""Waivers: memorized examples that somebody answers for, until a date. No torch.

[[waiver]]
id = "3e23e8160039594a"         # the finding's, or its first ten characters or more
reason = "synthetic canary, removed in the next data release"
owner = "privacy@example.org"
expires = 2027-01-31            # the last day it holds
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from memaudit.errors import UsageError
from memaudit.findings import ReportWarning
from memaudit.system import toml
from memaudit.text import clean

NAME = "memaudit-waivers.toml"
KEYS = ("id", "reason", "owner", "expires")
# As many characters of an id as reports print.
MIN_ID = 10


@dataclass(frozen=True)
class Waiver:
    """One accepted finding: its id or the start of it, why, who answers for it, and the last day it holds."""

    id: str
    reason: str
    owner: str
    expires: date

    def covers(self, finding: str) -> bool:
        """Whether it is about the finding with this id."""
        return finding.startswith(self.id)

    def __str__(self) -> str:
        return f"{self.reason} ({self.owner}, until {self.expires.isoformat()})"


@dataclass(frozen=True)
class Applied:
    """What the waivers accept among some findings: `reasons` by finding id, and what the reader must know."""

    reasons: dict[str, str]
    warnings: tuple[ReportWarning, ...]


def read(path: Path) -> tuple[Waiver, ...]:
    """The waivers in a file.

    Raises:
        UsageError: it cannot be read, a waiver lacks a key or has an unknown one, or two are about the same finding.
    """
    data, name = toml.read(path), toml.shown(path)
    toml.refuse_unknown(data, ("waiver",), name)
    entries = data.get("waiver", [])
    if not isinstance(entries, list):
        raise UsageError(f"{name}: write each waiver as a table of its own", hint="[[waiver]], two brackets a side")
    found = [_waiver(entry, f"{name}: waiver {n}") for n, entry in enumerate(entries, 1)]
    for n, waiver in enumerate(found):
        for earlier in found[:n]:
            if waiver.covers(earlier.id) or earlier.covers(waiver.id):
                raise UsageError(f"{name}: two waivers are about {clean(waiver.id)}", hint="Keep one of them.")
    return tuple(found)


def in_force(waivers: Sequence[Waiver], memorized: Iterable[str], today: date | None = None) -> Applied:
    """Which of the `memorized` findings (ids) are waived today.

    Args:
        today: by default the date in UTC.
    """
    day = today or datetime.now(UTC).date()
    ids = list(memorized)
    reasons: dict[str, str] = {}
    notes: list[ReportWarning] = []
    for waiver in waivers:
        covered = [identity for identity in ids if waiver.covers(identity)]
        if not covered:
            notes.append(_note("MEM802", f"the waiver of {waiver.id} fits no memorized finding: remove it"))
        elif len(covered) > 1:
            notes.append(_note("MEM802", f"the waiver of {waiver.id} fits {len(covered)} findings; give the full id"))
        elif waiver.expires < day:
            since = waiver.expires.isoformat()
            notes.append(
                _note("MEM801", f"the waiver of {waiver.id} ({waiver.owner}) expired on {since}: active again")
            )
        else:
            reasons[covered[0]] = clean(waiver, 400)
    return Applied(reasons, tuple(notes))


def _note(code: str, message: str) -> ReportWarning:
    return ReportWarning(code=code, message=clean(message, 400))


def _waiver(entry: object, where: str) -> Waiver:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is no table", hint=f"[[waiver]] with {', '.join(KEYS)}")
    toml.refuse_unknown(entry, KEYS, where)
    for key in KEYS:
        if key not in entry:
            raise UsageError(f"{where} has no {key}", hint=f"Every waiver says {', '.join(KEYS)}.")
    for key in KEYS[:3]:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise UsageError(f"{where}: {key} is not a text")
    identity = entry["id"].strip()
    if len(identity) < MIN_ID:
        raise UsageError(f"{where}: the id {clean(identity)!r} is too short", hint=f"Give {MIN_ID} characters or more.")
    return Waiver(identity, clean(entry["reason"]), clean(entry["owner"]), _day(entry["expires"], where))


def _day(value: object, where: str) -> date:
    """A TOML date, or one in quotes."""
    try:
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        if isinstance(value, str):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise UsageError(f"{where}: expires {clean(value)} is not a date", hint="For example: expires = 2027-01-31")
