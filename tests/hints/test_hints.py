"""Every hint is followed by somebody."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests.hints.follow import Follow, InCode
from tests.hints.listed import hints

MODULES = [
    importlib.import_module(f"tests.hints.{m.name}")
    for m in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not m.name.startswith("test_") and m.name not in ("follow", "listed")
]
FOLLOWED: list[Follow | InCode] = [case for module in MODULES for case in module.FOLLOWED]


@pytest.mark.parametrize("case", FOLLOWED, ids=[f"{n} {c.hint[:50]}" for n, c in enumerate(FOLLOWED)])
def test_a_hint_leads_to_success(case: Follow | InCode, tmp_path: Path) -> None:
    case.check(tmp_path)


def test_every_hint_has_a_follower() -> None:
    assert not {text for _, text in hints()} - {case.hint for case in FOLLOWED}
