"""Every situation of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_inputs.drawn import compare
from tests.real_inputs.harness import Case, check, every

CASES = every()


@pytest.mark.parametrize("case", CASES, ids=[f"{c.kind}: {c.name}" for c in CASES])
def test_it_ends_as_it_must(case: Case, tmp_path: Path) -> None:
    assert check(case, tmp_path).faults == ()


@pytest.mark.parametrize("seed", range(1000, 1005))
def test_a_drawn_situation_ends_as_the_plain_library_says(seed: int, tmp_path: Path) -> None:
    assert compare(seed, tmp_path) == ""


def test_no_situation_is_there_twice() -> None:
    assert len({(c.kind, c.name) for c in CASES}) == len(CASES)
