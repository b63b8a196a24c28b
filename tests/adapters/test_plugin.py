"""A plugin as users have it: built, installed by pip, found through its metadata, and run by the real command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.conftest import digits

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "memaudit-example"

RUN = """
import contextlib, io, json, sys
from memaudit.__main__ import run
results = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        results.append((run(command), err.getvalue()))
print(json.dumps(results))
"""

COMMON = ("--flagged", "flagged.npz", "--reference", "reference.npz", "--profile", "fast", "-q")
BROKEN = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "memaudit-broken"
version = "2.0"
[project.entry-points."memaudit.adapters"]
broken = "memaudit_broken:A"
gone = "memaudit_moved_away:A"
[tool.setuptools]
py-modules = ["memaudit_broken"]
"""


def train(folder: Path) -> None:
    """Train a mixer on digits, some of them with changed labels, where the plugin can be imported."""
    from memaudit_example import Mixer, Shape  # type: ignore[import-not-found]

    x, truth = digits()
    y = truth.clone()
    y[:12] = (y[:12] + 3) % 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Mixer(Shape(1, 2, 8, 32, 32, 64, 2, 10))
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(25):
            for rows in torch.randperm(600).split(50):
                optimiser.zero_grad()
                F.cross_entropy(network(x[rows]), y[rows]).backward()
                optimiser.step()
    save_file(network.state_dict(), folder / "mixer.safetensors")
    save_file({"w": torch.ones(2)}, folder / "other.safetensors")
    np.savez(folder / "flagged.npz", x=x[:12].numpy(), y=y[:12].numpy())
    np.savez(folder / "reference.npz", x=x[600:900].numpy(), y=truth[600:900].numpy())


class Installed:
    """A folder with both packages in it, and commands that see it beside everything else that is installed."""

    def __init__(self, folder: Path) -> None:
        self.site, self.work = folder / "site", folder / "work"
        self.work.mkdir()
        copy = folder / "memaudit-example"  # building writes beside the sources
        shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
        broken = folder / "memaudit-broken"
        broken.mkdir()
        (broken / "pyproject.toml").write_text(BROKEN)
        (broken / "memaudit_broken.py").write_text("raise RuntimeError('no such \\x1b[31m luck')\n")
        pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        self.python(*pip, "--disable-pip-version-check", "--target", str(self.site), str(copy), str(broken))

    def python(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", "CI": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.work, env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def memaudit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "memaudit", *arguments, check=False)

    def several(self, *commands: list[str]) -> list[tuple[int, str]]:
        """Exit code and stderr of commands that share a process: loading torch takes longer than they do."""
        done = self.python("-c", RUN, json.dumps(commands))
        return [(code, text) for code, text in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    found = Installed(tmp_path_factory.mktemp("plugins"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(found.site))
        train(found.work)
    return found


@pytest.fixture(scope="module")
def together(installed: Installed) -> dict[str, tuple[int, str]]:
    """How the commands ended that need no process of their own."""
    commands = {
        **{name: ["adapters", "test", name] for name, _ in UNUSABLE},
        "timm": ["adapters", "test", "timm"],
        "unnamed": ["scan", "mixer.safetensors", *COMMON, "--out", "other"],
        "foreign": ["scan", "other.safetensors", "--adapter", "example", *COMMON, "--out", "other"],
    }
    return dict(zip(commands, installed.several(*commands.values()), strict=True))


def test_plugins_are_listed_with_package_and_version_whether_or_not_they_work(installed: Installed) -> None:
    done = installed.memaudit("adapters", "list")
    rows = {line.split()[0]: line.split(maxsplit=3)[1:] for line in done.stdout.splitlines()}
    assert done.returncode == 0
    assert rows["example"] == ["memaudit-example", "0.1.0", "memaudit_example:MixerAdapter"]
    assert rows["broken"] == ["memaudit-broken", "2.0", "memaudit_broken:A"]  # listing imports nothing
    assert rows["gone"] == ["memaudit-broken", "2.0", "no module named 'memaudit_moved_away'"]
    assert rows["timm"][2] == "memaudit.adapters.timm:TimmAdapter"
    assert installed.memaudit("adapters").stdout == done.stdout


def test_the_example_passes_the_conformance_kit(installed: Installed) -> None:
    done = installed.memaudit("adapters", "test", "example")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("ok: ") == 11


# name, how the error begins
UNUSABLE = [
    ("broken", "the adapter 'broken' of memaudit-broken 2.0 cannot be imported: RuntimeError: no such \\x1b[31m luck"),
    ("gone", "the adapter 'gone' of memaudit-broken 2.0 cannot be imported: ModuleNotFoundError"),
    ("exampel", "no adapter 'exampel' is installed; closest: 'example'"),
]


def test_a_broken_plugin_is_a_usage_error_where_it_is_named(together: dict[str, tuple[int, str]]) -> None:
    for name, says in UNUSABLE:
        code, text = together[name]
        assert (code, text.startswith(f"error: {says}")) == (2, True), text
    assert together["timm"] == (0, "")  # and it breaks nothing else


def test_the_example_scans_what_it_saved_and_nothing_else(
    installed: Installed, together: dict[str, tuple[int, str]]
) -> None:
    done = installed.memaudit("scan", "mixer.safetensors", "--adapter", "example", *COMMON, "--out", "report")
    assert done.returncode == 1, done.stderr  # it memorized, and the default policy allows nothing memorized
    report = json.loads((installed.work / "report" / "report.json").read_text())
    assert (report["model"]["adapter"], report["model"]["architecture"]) == ("example", "mixer-2x32")
    assert {u["layer"] for u in report["units"]["by_layer"]} == {
        "patch", "blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second",
    }  # fmt: skip
    assert report["summary"]["fitted"] >= 6
    assert report["summary"]["outcomes"]["localized"] >= 1

    (code, unnamed), (foreign_code, foreign) = together["unnamed"], together["foreign"]
    assert (code, foreign_code) == (3, 3)
    assert "no architecture of timm" in unnamed  # a plugin runs only when it is named
    assert "other.safetensors is no mixer" in foreign
    assert not (installed.work / "other").exists()
