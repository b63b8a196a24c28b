"""The registry lists what packages declare without importing it, and imports only what was chosen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import memaudit
from memaudit.adapters.base import ModelOptions
from memaudit.adapters.registry import choose, installed, load_class
from memaudit.adapters.timm import TimmAdapter
from memaudit.checkpoints import Facts, read
from memaudit.errors import ModelRejected, UsageError

PLUGIN = """
from torch import nn
from memaudit.adapters.base import Adapter
from memaudit.data.images.preprocess import Preprocess

class A(Adapter):
    name = "good"

    @classmethod
    def load(cls, checkpoint, options):
        return cls(nn.Linear(2, 2), architecture="linear", preprocess=Preprocess((3, 8, 8)))

class Bad(Adapter):
    @classmethod
    def load(cls, checkpoint, options):
        raise KeyError("x\\x1b")

class Other:
    pass
"""


def declare(folder: Path, package: str, entries: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `package` installed, as far as metadata goes."""
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = "\n".join(f"{name} = {target}" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[memaudit.adapters]\n{lines}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_timm_is_there_even_uninstalled() -> None:
    assert [a.target for a in installed() if a.name == "timm"] == ["memaudit.adapters.timm:TimmAdapter"]
    assert load_class("timm") is TimmAdapter


def test_listing_imports_nothing_and_reports_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud_plugin.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    declare(tmp_path, "loud", {"loud": "loud_plugin:A", "gone": "no_such_module_here:A"}, monkeypatch)
    adapters = {a.name: a for a in installed()}
    assert adapters["loud"].error == ""
    assert (adapters["loud"].package, adapters["loud"].version) == ("loud", "1.2")
    assert "no module named 'no_such_module_here'" in adapters["gone"].error
    assert not (tmp_path / "canary").exists()


def test_a_plugin_is_used_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_plugin.py").write_text(PLUGIN)
    targets = {"good": "good_plugin:A", "bad": "good_plugin:Bad", "other": "good_plugin:Other", "typo": "good_plugin:B"}
    declare(tmp_path, "plugin", targets, monkeypatch)
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    checkpoint = read(tmp_path / "x.safetensors")
    assert choose(checkpoint, ModelOptions(), "good").architecture == "linear"
    with pytest.raises(ModelRejected, match=r"'bad' failed on x.safetensors: KeyError: 'x\\+x1b'"):
        choose(checkpoint, ModelOptions(), "bad")
    with pytest.raises(UsageError, match="no subclass"):
        choose(checkpoint, ModelOptions(), "other")
    with pytest.raises(UsageError, match="cannot be imported: AttributeError"):
        choose(checkpoint, ModelOptions(), "typo")
    with pytest.raises(ModelRejected, match="no architecture of timm"):
        choose(checkpoint, ModelOptions())
    transformers = replace(checkpoint, facts=Facts(model_type="vit"))
    monkeypatch.setattr("memaudit.adapters.registry.COMPANION", ("good", "memaudit-transformers"))
    with pytest.raises(ModelRejected, match="needs the package memaudit-transformers") as caught:
        choose(transformers, ModelOptions())  # another package's adapter of that name is not taken
    assert "pip install memaudit-transformers" in caught.value.hint
    monkeypatch.setattr("memaudit.adapters.registry.COMPANION", ("good", "plugin"))
    assert choose(transformers, ModelOptions()).architecture == "linear"


def test_unknown_and_doubled_names_are_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no adapter 'tim' is installed; closest: 'timm'"):
        load_class("tim")
    declare(tmp_path, "rival", {"timm": "rival:A"}, monkeypatch)
    with pytest.raises(UsageError, match="two packages declare the adapter 'timm'"):
        load_class("timm")


def test_listing_loads_no_torch() -> None:
    code = "import sys; from memaudit.adapters.registry import installed; installed(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("isolated", [False, True])
def test_a_source_tree_that_is_not_installed_has_a_version_too(isolated: bool, tmp_path: Path) -> None:
    """Audits write it into their reports, and a run that goes on is held against it."""
    root = Path(memaudit.__file__).parents[1]
    (tmp_path / "memaudit").symlink_to(root / "memaudit")
    alone = ["-I", "-S"] if isolated else []  # no site packages: nothing is installed
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import memaudit; print(memaudit.__version__)"
    ran = subprocess.run([sys.executable, *alone, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.strip() == ("not installed" if isolated else version("memaudit"))


def test_a_plugin_that_overrides_forward_is_told_what_to_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "class Old(A):\n    def forward(self, images):\n        return self.module(images).logits\n"
    (tmp_path / "old_plugin.py").write_text(PLUGIN + own)
    declare(tmp_path, "old", {"old": "old_plugin:Old"}, monkeypatch)
    with pytest.raises(UsageError, match=r"cannot be imported: TypeError: Old\.forward: .*override inputs\(batch\)"):
        load_class("old")
