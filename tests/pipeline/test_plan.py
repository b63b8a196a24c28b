"""The plan says what workers would make of an audit: no less than what one process does by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from memaudit.audits.base import Workload
from memaudit.pipeline.plan import spread
from memaudit.settings import PROFILES


def audit(passes: float, pieces: int) -> Any:
    return SimpleNamespace(passes=lambda size: passes, pieces=lambda size: pieces)


def test_an_audit_takes_no_less_than_its_longest_piece_and_what_is_done_alone() -> None:
    size = Workload(PROFILES["fast"], flagged=60, fitted=60, reference=580)
    line = spread([audit(32_000, 1000), audit(4_000, 4)], size, each=0.1, alone=20.0)
    # 30 s alone and for the start; 64 s of observation and 3,200 s of the first by all; 400 s of the second by four.
    assert [30 + 3264 / n + 400 / min(n, 4) for n in (2, 8, 64)] == [1862, 538, 181]
    assert line.split(": ")[1] == "2 in 31 min, 8 in 9 min, 64 in 3 min; 30 s of it by one process"
