"""A share of the corpus, so that the suite notices; `python -m tests.hostile` runs all of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.hostile import fuzz
from tests.hostile.cases import every
from tests.hostile.harness import Case, check, prepare

pytestmark = pytest.mark.processes

CASES = every()
SHARE = 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("case", CASES[::SHARE], ids=[f"{n * SHARE}" for n in range(len(CASES[::SHARE]))])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_bad_input_keeps_every_promise(case: Case, base: Path, tmp_path: Path) -> None:
    result = check(base, case, tmp_path)
    assert not result.faults, (case.kind, case.name, result.said)


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CASES) >= 120
    assert len({(c.kind, c.name) for c in CASES}) == len(CASES)


@pytest.mark.parametrize("target", fuzz.seeds())
def test_a_few_mutants(target: str, tmp_path: Path) -> None:
    found = fuzz.run(target, 400, 1, tmp_path)
    assert found["refused"] > 200
    assert found["refused"] + found["refused by the child"] + found["accepted"] == 400


def test_what_is_not_changed_is_accepted(tmp_path: Path) -> None:
    for content, target, *_ in fuzz.seeds().values():
        suffix = ".safetensors" if target is fuzz.header else ".pt"
        assert target(content, tmp_path / f"x{suffix}") == "accepted"


def test_mutants_differ_and_repeat() -> None:
    def mutants(seed: int) -> list[bytes]:
        draw = random.Random(seed)
        return [fuzz.mutate(bytes(range(64)), draw, [b"xyz"], 0, 64) for _ in range(50)]

    assert mutants(1) == mutants(1) != mutants(2)
    assert len(set(mutants(1))) > 40
