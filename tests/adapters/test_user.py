"""A user's own factory: what runs, what it must return, and whose line an error names."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from memaudit.adapters.base import ModelOptions
from memaudit.adapters.registry import choose
from memaudit.adapters.user import UserAdapter
from memaudit.checkpoints import read
from memaudit.errors import MemauditError, ModelRejected, UsageError

HEAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""
BUILD = HEAD + "\ndef build():\n    return Net()\n"
SIZE = (3, 8, 8)


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture
def original() -> Net:
    torch.manual_seed(0)
    return Net()


def write(folder: Path, source: str, state: dict[str, torch.Tensor]) -> tuple[Any, str]:
    """The checkpoint and the spec of a factory called `build`."""
    save_file(state, folder / "weights.safetensors")
    (folder / "my_model.py").write_text(source)
    return read(folder / "weights.safetensors"), f"{folder / 'my_model.py'}:build"


def test_a_module_is_loaded_strictly(tmp_path: Path, original: Net) -> None:
    checkpoint, spec = write(tmp_path, BUILD, original.state_dict())
    adapter = choose(checkpoint, ModelOptions(input_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3), spec)
    images = torch.rand(2, *SIZE)
    assert torch.allclose(adapter.forward(images), original((images - 0.5) / 0.2), atol=1e-6)
    assert adapter.architecture == "Net"
    assert adapter.preprocess.origin == "flags"


def test_a_transform_replaces_mean_and_std(tmp_path: Path, original: Net) -> None:
    source = HEAD + "\ndef build():\n    return Net(), lambda x: 2 * x - 1\n"
    checkpoint, spec = write(tmp_path, source, original.state_dict())
    adapter = choose(checkpoint, ModelOptions(input_size=SIZE), spec)
    images = torch.rand(2, *SIZE)
    assert torch.equal(adapter.forward(images), original(2 * images - 1))


def test_the_report_can_name_the_code(tmp_path: Path, original: Net) -> None:
    checkpoint, spec = write(tmp_path, BUILD, original.state_dict())
    adapter = choose(checkpoint, ModelOptions(input_size=SIZE, user_file=spec))
    assert isinstance(adapter, UserAdapter)
    assert adapter.code.file == "my_model.py"
    assert adapter.code.sha256 == hashlib.sha256(BUILD.encode()).hexdigest()
    assert adapter.code.module in sys.modules


def test_keyword_arguments_reach_the_factory(tmp_path: Path) -> None:
    source = HEAD + "\nbuild = Net\n"
    checkpoint, spec = write(tmp_path, source, Net(width=6).state_dict())
    adapter = choose(checkpoint, ModelOptions(input_size=SIZE, model_kwargs={"width": 6}), spec)
    assert adapter.module.body.out_channels == 6


def test_a_wrapper_attribute_called_model_keeps_its_name(tmp_path: Path, original: Net) -> None:
    source = HEAD + (
        "\nclass Wrap(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.model = Net()\n"
        "    def forward(self, x):\n        return self.model(x)\n\nbuild = Wrap\n"
    )
    checkpoint, spec = write(tmp_path, source, {f"model.{n}": t for n, t in original.state_dict().items()})
    assert checkpoint.stripped_prefix == "model."
    images = torch.rand(2, *SIZE)
    assert torch.equal(choose(checkpoint, ModelOptions(input_size=SIZE), spec).forward(images), original(images))


FAILS: list[tuple[str, str, dict[str, Any], type[MemauditError], str]] = [
    ("no factory", HEAD, {}, UsageError, "no factory 'build'"),
    ("syntax error", "def build(:\n", {}, ModelRejected, "line 1 raised SyntaxError"),
    ("raises at import", "x = 1\nraise ValueError('boom')\n", {}, ModelRejected, r"line 2 \(raise Value.*: boom"),
    ("raises in the factory", "def build():\n    return 1 / 0\n", {}, ModelRejected, r"line 2 \(return 1 / 0\)"),
    ("leaves", "import sys\nsys.exit(0)\n", {}, ModelRejected, "SystemExit"),
    ("missing package", "import no_such_package\n", {}, ModelRejected, "ModuleNotFoundError"),
    ("returns a number", "def build():\n    return 3\n", {}, ModelRejected, "returned int"),
    (
        "returns a triple",
        BUILD.replace("return Net()", "return Net(), 1, 2"),
        {},
        ModelRejected,
        "returned Net, int, int",
    ),
    (
        "transform is no function",
        BUILD.replace("return Net()", "return Net(), 1"),
        {},
        ModelRejected,
        "returned Net, int",
    ),
    ("module on meta", BUILD.replace("Net()", "Net().to('meta')"), {}, ModelRejected, "on `meta`"),
    ("other tensors", BUILD.replace("Net()", "nn.Linear(2, 2)"), {}, ModelRejected, "missing"),
    ("wants arguments", BUILD.replace("build()", "build(a)"), {}, ModelRejected, "raised TypeError"),
    ("no input size", BUILD, {"input_size": None}, UsageError, "input size"),
    (
        "transform and mean",
        BUILD.replace("return Net()", "return Net(), abs"),
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
        UsageError,
        "returns a transform",
    ),
    ("control characters", "raise ValueError('\\x1b[2J\\n::error::')\n", {}, ModelRejected, "::error::"),
]


@pytest.mark.parametrize(("source", "options", "error", "match"), [f[1:] for f in FAILS], ids=[f[0] for f in FAILS])
def test_mistakes_name_the_users_line(
    tmp_path: Path, original: Net, source: str, options: dict[str, Any], error: Any, match: str
) -> None:
    checkpoint, spec = write(tmp_path, source, original.state_dict())
    with pytest.raises(error, match=match) as caught:
        choose(checkpoint, ModelOptions(**{"input_size": SIZE, **options}), spec)
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("spec", ["model.py:", "model:build", "model.py:a-b", "C:model.txt:build"])
def test_a_spec_of_another_form_is_a_usage_error(tmp_path: Path, original: Net, spec: str) -> None:
    checkpoint, _ = write(tmp_path, BUILD, original.state_dict())
    with pytest.raises(UsageError, match="not of the form"):
        choose(checkpoint, ModelOptions(), spec)


def test_neither_the_current_directory_nor_the_files_own_is_searched(
    tmp_path: Path, original: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sibling.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    checkpoint, spec = write(tmp_path, "import sibling\n" + BUILD, original.state_dict())
    with pytest.raises(ModelRejected, match="ModuleNotFoundError") as caught:
        choose(checkpoint, ModelOptions(input_size=SIZE), spec)
    assert "current directory is not searched" in caught.value.hint
    assert not (tmp_path / "canary").exists()


def test_user_code_runs_only_when_it_is_named(tmp_path: Path, original: Net) -> None:
    checkpoint, _ = write(tmp_path, "raise SystemExit", original.state_dict())
    with pytest.raises(ModelRejected, match="no architecture of timm"):
        choose(checkpoint, ModelOptions())
