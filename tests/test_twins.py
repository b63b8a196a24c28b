"""The list of fast paths and their slow twins is complete and true."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.twins import TWINS

ROOT = Path(__file__).parents[1]


def named(name: str) -> Any:
    """What `module:Class.method` names."""
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("fast", TWINS)
def test_each_fast_path_is_there_and_says_so(fast: str) -> None:
    lines, start = inspect.getsourcelines(inspect.unwrap(named(fast)))
    above = Path(inspect.getsourcefile(inspect.unwrap(named(fast))) or "").read_text().splitlines()[: start - 1]
    while above and above[-1].lstrip().startswith(("@", ")")):
        above.pop()
    assert above[-1].lstrip().startswith("# Fast path"), lines[0]


@pytest.mark.parametrize("test", TWINS.values())
def test_each_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert name in {n.name for n in ast.parse((ROOT / file).read_text()).body if isinstance(n, ast.FunctionDef)}


def test_whatever_is_marked_is_listed() -> None:
    marked = sum(path.read_text().count("# Fast path") for path in (ROOT / "memaudit").rglob("*.py"))
    assert marked == len(TWINS)


def test_every_twin_of_the_reference_is_used() -> None:
    twins = {
        node.name
        for node in ast.parse((ROOT / "tests/reference.py").read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    files = {file for file, _, _ in (test.partition("::") for test in TWINS.values())}
    files |= {"tests/audits/test_atypicality.py", "tests/reference.py"}
    used = "\n".join((ROOT / file).read_text() for file in files)
    unused = {name for name in twins if used.count(name) < 2}
    assert not unused
