"""Every situation of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_inputs.harness import Case, check, every, execute, inside

CASES = every()


@pytest.mark.parametrize("case", CASES, ids=[f"{c.kind}: {c.name}" for c in CASES])
def test_it_ends_as_it_must(case: Case, tmp_path: Path) -> None:
    assert check(case, tmp_path).faults == ()


REFUSED = [c for c in CASES if c.argv[0] == "scan" and c.expected.code > 1 and "--dry-run" not in c.argv]


@pytest.mark.parametrize("case", REFUSED, ids=[f"{c.kind}: {c.name}" for c in REFUSED])
def test_a_dry_run_refuses_what_the_scan_refuses(case: Case, tmp_path: Path) -> None:
    if "in the middle" in case.name:
        pytest.skip("no check comes that far")
    with inside(tmp_path):
        case.build(tmp_path)
        assert execute(tmp_path, (*case.argv, "--dry-run")).code == case.expected.code


def test_no_situation_is_there_twice() -> None:
    assert len({(c.kind, c.name) for c in CASES}) == len(CASES)
