"""Every hint is followed by somebody, or stands in the list of those that still wait; that list only shrinks."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests.hints.follow import Follow, InCode
from tests.hints.listed import hints

PENDING = Path(__file__).with_name("pending.txt")
MODULES = [
    importlib.import_module(f"tests.hints.{m.name}")
    for m in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not m.name.startswith("test_") and m.name not in ("follow", "listed")
]
FOLLOWED: list[Follow | InCode] = [case for module in MODULES for case in module.FOLLOWED]


@pytest.mark.parametrize("case", FOLLOWED, ids=[f"{n} {c.hint[:50]}" for n, c in enumerate(FOLLOWED)])
def test_a_hint_leads_to_success(case: Follow | InCode, tmp_path: Path) -> None:
    case.check(tmp_path)


def test_every_hint_has_a_follower_or_waits_for_one() -> None:
    waiting = set(PENDING.read_text("utf-8").splitlines())
    followed = {case.hint for case in FOLLOWED}
    written = {text for _, text in hints()}
    assert not written - followed - waiting, "a new hint needs a follower"
    assert not waiting & followed, "no longer waiting: take it out of pending.txt"
    assert not waiting - written, "no longer in the source: take it out of pending.txt"
