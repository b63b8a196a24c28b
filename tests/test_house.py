"""The house: imports go down only, and whoever needs no torch loads none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import circles, imports

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "timm", "numpy", "sklearn", "PIL", "safetensors")


def test_imports_go_down_only() -> None:
    command = shutil.which("lint-imports", path=f"{Path(sys.executable).parent}")
    assert command is not None
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("package", [ROOT / "memaudit", *sorted(ROOT.glob("plugins/*/src/*/"))], ids=lambda p: p.name)
def test_no_file_leads_back_to_itself(package: Path) -> None:
    """Imports inside functions count too: `lint-imports` looks at packages, not at the files in one."""
    assert not circles(imports(package))


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    for name, text in {
        "__init__": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from p.a import x\ndef __getattr__(n): ...",
        "a": "def f():\n from p import b",
        "b": "from p.c import y",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from p import a\nelse:\n import p.d",
        "d": "import os",
    }.items():
        (package / f"{name}.py").write_text(text)
    assert circles(imports(package)) == []
    (package / "d.py").write_text("def f():\n def g():\n  from p import x")
    assert circles(imports(package)) == [["p", "p.a", "p.b", "p.c", "p.d"]], "through the face that loads `x` from `a`"


def test_no_file_is_long() -> None:
    """Past 350 lines a file holds two ideas; `sites` holds one, with its proof."""
    long = {p.relative_to(ROOT / "memaudit").as_posix() for p in (ROOT / "memaudit").rglob("*.py") if lines(p) > 350}
    assert long <= {"network/sites.py"}


def lines(path: Path) -> int:
    return path.read_text("utf-8").count("\n")


@pytest.mark.parametrize(
    "names", ["memaudit", "memaudit.findings", "memaudit.report", "memaudit.gate", "memaudit.errors"]
)
def test_what_needs_no_torch_loads_none(names: str) -> None:
    code = f"import sys, {names}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_public_names_are_there_and_lazy() -> None:
    code = "import sys, memaudit; [getattr(memaudit, n) for n in dir(memaudit)]; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["True"]
    with pytest.raises(AttributeError, match="module 'memaudit' has no attribute 'scan'"):
        __import__("memaudit").scan  # noqa: B018


def test_help_loads_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "memaudit", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in loaded  # the list is one
    assert not loaded & set(HEAVY)
    assert "scan" in done.stdout
