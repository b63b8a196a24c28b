"""An environment without torch: a real virtual environment that holds memaudit and what the gate needs, and no more."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
HOOKS = ROOT / ".pre-commit-hooks.yaml"
ABSENT = ("torch", "timm", "numpy", "scipy", "sklearn", "PIL", "safetensors", "torchvision")


def hook() -> dict[str, object]:
    """The one hook this repository offers."""
    (found,) = yaml.safe_load(HOOKS.read_text("utf-8"))
    return dict(found)


def listed() -> list[str]:
    """Names of the packages that the hook installs beside memaudit."""
    dependencies = hook()["additional_dependencies"]
    assert isinstance(dependencies, list)
    assert dependencies[0] == "--no-deps"
    return [re.split(r"[=<>]", name)[0] for name in dependencies[1:]]


def missing() -> set[str]:
    """Packages that the listed ones require and that are not listed."""
    needed = {
        re.split(r"[ ;<>=!~(\[]", requirement)[0].lower().replace("_", "-")
        for name in listed()
        for requirement in requires(name) or []
        if "extra ==" not in requirement and "Windows" not in requirement
    }
    return needed - set(listed())


def make(folder: Path) -> Path:
    """The environment's Python; packages are links to those installed here, so nothing is fetched."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for name in listed():
        found = distribution(name)
        for top in {str(file).split("/")[0] for file in found.files or () if not str(file).startswith("..")}:
            _link(site / top, Path(str(found.locate_file(top))))
    _link(site / "memaudit", ROOT / "memaudit")
    own = distribution("memaudit")
    info = next(p for p in Path(str(own.locate_file(""))).iterdir() if p.match("memaudit*-info"))
    _link(site / info.name, info)
    python = folder / "bin" / "python"
    script = folder / "bin" / "memaudit"
    script.write_text(f'#!/bin/sh\nexec "{python}" -P -m memaudit "$@"\n')
    script.chmod(0o755)
    return python


def _link(link: Path, target: Path) -> None:
    if not link.exists():
        link.symlink_to(target)
