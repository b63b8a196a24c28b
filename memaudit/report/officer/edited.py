"""What an edit did, and what is left of it, in sentences for the officer's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import count, percent
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Erasure, Membership

UNTOUCHED = "Nothing was changed by this audit. The examined model is as it was."


def done(erasure: Erasure) -> list[str]:
    """What was done, what it cost, and what was tried to undo it."""
    before, after = erasure.before, erasure.after
    lines = [
        (
            f"An edited copy was written ({clean(erasure.file)}, SHA-256 {clean(erasure.sha256)}): "
            f"{clean(erasure.done or erasure.method)}. The file it was made from (SHA-256 "
            f"{clean(erasure.source_sha256)}) is as it was. All figures are of the copy as read back."
        ),
        f"Right on comparison examples: {percent(before.reference)} before, {percent(after.reference)} after.",
    ]
    for name, old, new in (
        ("examples the edit was made with", before.used, after.used),
        ("examined examples it was not made with", before.unused, after.unused),
    ):
        if old is not None:
            lines.append(f"Labels still given, of {name}: {percent(old)} before, {percent(new)} after.")
    if (random := erasure.random) is not None:
        parts = count(random.units, f"{clean(random.kind)} of the network", f"{clean(random.kind)}s of the network")
        lines.append(
            f"For comparison, as many parts were taken out at random ({parts}, {count(random.draws, 'time')}): then "
            f"{percent(random.used)} of the labels are still given, and {percent(random.reference)} of the comparison "
            "examples are right."
        )
    return lines + _tried(erasure)


def _tried(erasure: Erasure) -> list[str]:
    lines = []
    if erasure.inputs:
        most = erasure.inputs[-1]
        lines.append(
            f"A small change of the input was searched for that brings a removed label back: it was found for "
            f"{percent(most.flagged)}, and for {percent(most.control)} of ordinary examples. Where the first is "
            "larger, the copy still holds more of the examined examples than of others."
        )
    if erasure.relearning:
        last = erasure.relearning[-1]
        control = "" if last.control is None else f" ({percent(last.control)} after as many steps on ordinary examples)"
        lines.append(
            f"After {count(last.steps, 'short training step')} on other examined examples, {percent(last.rest)} of the "
            f"labels are given again{control}. What comes back faster than by ordinary training was only hidden."
        )
    if (after := erasure.membership) is not None:
        was = erasure.membership_before
        then = "After the edit" if was is None else f"Before the edit {_shown(was)}, after it"
        lines.append(
            "Do the answers show that the model was trained on the examined examples? "
            f"{then} {_shown(after)} (memaudit verify says how sure this is)."
        )
    return lines


def _shown(said: Membership) -> str:
    if said.unlike:
        return "this cannot be told, for their labels are less probable than those of unseen examples"
    return "they do" if said.found else "no sign was found"


def remains(erasure: Erasure) -> list[str]:
    """What is left to do after it."""
    lines = [f"Use the edited copy ({clean(erasure.file)}) in place of the file it was made from, wherever that runs."]
    left = erasure.after.used
    if left:
        lines.append(f"{percent(left)} of the labels that the edit was made for are still given.")
    lines.append(
        "An edit suppresses what the model says. Only training again without the examples makes sure that nothing of "
        "them is in it."
    )
    return lines
