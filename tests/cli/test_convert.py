"""`memaudit convert`, `--error-json`, and what lies in the current directory."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from memaudit.checkpoints import read
from tests.checkpoints.test_pickle import Payload, rewrite
from tests.cli_support import Command, command, tree


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(tmp_path, monkeypatch, capsys)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trusted(path: Path) -> tuple[str, ...]:
    return "--trust-pickle", "--sha256", digest(path)


def ran_by(path: Path) -> Payload:
    return Payload(path.parent / "ran")


def deflated(path: Path) -> None:
    import zipfile

    torch.save({"w": torch.zeros(1 << 18)}, path)
    rewrite(path, lambda n, d: (n, d), compression=zipfile.ZIP_DEFLATED)


WRITERS: dict[str, Callable[[Path], object]] = {
    "whole module": lambda p: torch.save(nn.Linear(2, 3), p),
    "code beside the weights": lambda p: torch.save({"state_dict": {"w": torch.ones(2)}, "x": ran_by(p)}, p),
    "bare pickle": lambda p: p.write_bytes(pickle.dumps({"w": torch.ones(2)})),
    "module in an old checkpoint": lambda p: torch.save(
        {"model": nn.Linear(2, 3), "epoch": 7}, p, _use_new_zipfile_serialization=False
    ),
    "TorchScript": lambda p: torch.jit.save(torch.jit.script(nn.Linear(2, 3)), str(p)),
    "deflated": deflated,
}  # fmt: skip


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.serialization.SourceChangeWarning")
def test_a_trusted_pickle_becomes_safetensors(cli: Command, tmp_path: Path, how: str) -> None:
    source = tmp_path / "in.pt"
    WRITERS[how](source)
    ran = cli("convert", *trusted(source), "in.pt", "out.safetensors")
    assert (ran.code, ran.out) == (0, ""), ran.err
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) in ({"w"}, {"weight", "bias"})
    assert (tmp_path / "ran").exists() == (how == "code beside the weights")  # it was trusted
    assert {p.name for p in tmp_path.iterdir()} <= {"in.pt", "out.safetensors", "ran"}


def test_epoch_and_tied_weights_are_kept(cli: Command, tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    content = {"state_dict": OrderedDict(a=shared, b=shared), "epoch": 7, "x": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "in.pt")
    assert cli("convert", *trusted(tmp_path / "in.pt"), "in.pt", "out.safetensors").code == 0
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "epoch": "7"}
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared)


def test_what_a_run_said_of_its_checkpoint_is_kept(cli: Command, tmp_path: Path) -> None:
    args = Namespace(model="test_resnet", num_classes=3, img_size=32, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    content = {"state_dict": timm.create_model("test_resnet", num_classes=3).state_dict(), "args": args, "epoch": 2}
    torch.save(content | {"x": Payload(tmp_path / "ran")}, tmp_path / "in.pt")
    assert cli("convert", *trusted(tmp_path / "in.pt"), "in.pt", "out.safetensors").code == 0
    facts = read(tmp_path / "out.safetensors").facts
    assert (facts.architecture, facts.num_classes) == ("test_resnet", 3)
    assert facts.preprocess == {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert cli("inspect", "out.safetensors").code == 0


REFUSED: list[tuple[str, tuple[str, ...], int, str]] = [
    ("no flags", (), 2, "can run any code"),
    ("no digest", ("--trust-pickle",), 2, "can run any code"),
    ("no trust", ("--sha256", "0" * 64), 2, "can run any code"),
    ("half a digest", ("--trust-pickle", "--sha256", "0" * 63), 2, "can run any code"),
    ("another file", ("--trust-pickle", "--sha256", "0" * 64), 3, "is not the file that --sha256 names"),
]


@pytest.mark.parametrize(("flags", "code", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_nothing_runs_without_both_flags(
    cli: Command, tmp_path: Path, flags: tuple[str, ...], code: int, says: str
) -> None:
    torch.save({"w": torch.ones(2), "x": Payload(tmp_path / "ran")}, tmp_path / "in.pt")
    before = tree(tmp_path)
    ran = cli("convert", *flags, "in.pt", "out.safetensors")
    assert (ran.code, says in ran.err, tree(tmp_path)) == (code, True, before)


class Quit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (0,)


class Wants:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('no_such_package')",)


class Hungry:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (6 << 30,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (Quit(), "in.pt"),
        (Wants(), "needs the Python package 'no_such_package'"),
        (Hungry(), "far more memory than its size"),
        ([1, 2], "not a table of named tensors"),
    ],
    ids=["leaves", "package", "memory", "a list"],
)
def test_a_trusted_pickle_that_cannot_be_used_is_refused(
    cli: Command, tmp_path: Path, content: object, says: str
) -> None:
    source = tmp_path / "in.pt"
    source.write_bytes(pickle.dumps(content))
    before = tree(tmp_path)
    ran = cli("convert", *trusted(source), "in.pt", "out.safetensors")
    assert (ran.code, tree(tmp_path)) == (3, before)
    assert says in ran.err


@pytest.mark.parametrize(("name", "out"), [("in.pt", "out.pt"), ("in.safetensors", "out.safetensors")])
def test_only_from_pickle_to_safetensors(cli: Command, tmp_path: Path, name: str, out: str) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / name)
    assert cli("convert", *trusted(tmp_path / name), name, out).code == 2


# ---- --error-json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
def test_machines_are_told_how_a_command_ended(cli: Command, tmp_path: Path, place: int) -> None:
    words = ["inspect", "gone.pt"]
    for option in (["--error-json", "e.json"], ["--error-json=e.json"]):
        given = [*words[:place], *option, *words[place:]]
        ran = cli(*given)
        told = json.loads((tmp_path / "e.json").read_text())
        assert (ran.code, told["exit_code"], told["error"]["kind"]) == (3, 3, "ModelRejected")
        assert f"error: {told['error']['message']}\n  fix: {told['error']['hint']}\n" == ran.err
        (tmp_path / "e.json").unlink()


def test_success_and_usage_errors_are_told_too(cli: Command, tmp_path: Path) -> None:
    assert cli("--error-json", "e.json", "schema").code == 0
    assert json.loads((tmp_path / "e.json").read_text()) == {"schema_version": 1, "exit_code": 0, "error": None}
    assert cli("scan", "--bogus", "--error-json", "e.json").code == 2
    told = json.loads((tmp_path / "e.json").read_text())
    assert told["exit_code"] == 2
    assert told["error"]["message"].startswith("No such option: --bogus")  # some releases of typer add what is near


@pytest.mark.parametrize("words", [("schema", "--error-json"), ("schema", "--error-json", ".")])
def test_a_place_that_cannot_be_written_is_refused_first(cli: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (2, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")],
)
def test_memory_that_runs_out_anywhere_is_no_bug(error: Exception) -> None:
    from memaudit.__main__ import _failure

    assert (_failure(error).exit_code, _failure(error).message) == (5, "out of memory")


# ---- the current directory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "model"), [(["-m", "memaudit"], "x.safetensors"), (None, "x.pt")])
def test_nothing_in_the_current_directory_is_imported(tmp_path: Path, start: list[str] | None, model: str) -> None:
    evil = "open({!r}, 'w').write('x')\nraise SystemExit(0)\n".format(str(tmp_path / "ran"))
    for name in ("timm", "torch", "typer", "rich", "json", "sitecustomize", "yaml", "safetensors", "uuid", "numpy"):
        (tmp_path / f"{name}.py").write_text(evil)
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    words = [sys.executable, *start] if start else [str(Path(sys.executable).with_name("memaudit"))]
    done = subprocess.run([*words, "inspect", model], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "no architecture" in done.stderr) == (3, True), done.stderr
    assert not (tmp_path / "ran").exists()
