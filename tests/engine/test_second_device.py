"""The commands on a device that is not the CPU: what they find there, and what the host waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import nn

from memaudit.__main__ import run
from memaudit.engine.evaluator import Evaluator
from memaudit.network.tied_dropout import add_tied_dropout
from tests.cli_support import MODEL, NPZ, write_timm, write_work
from tests.conftest import Trained
from tests.networks import DigitsNet
from tests.quick import short_trainings

ALL = ("--flagged", "all-flagged.npz", "--reference", "reference.npz")
VIT = ("--flagged", "vit/flagged.npz", "--reference", "vit/reference.npz")
NUMBERED = ("--flagged", "numbered.npz", "--reference", "reference.npz")  # with ids: each runs with its own units
OTHERS = ("--images", "none", "--batch-size", "64")
FEW = ("--max-units", "3")
SERIES = ("--checkpoints", "run/epoch-*.safetensors", "--audit", "gradients,rewind,retrain")
ERASE = ("erase", "standard-cpu/report.json", "--model", "digits.safetensors", "--adapter", "network.py:build")
COMMANDS: dict[str, tuple[str, ...]] = {
    "standard": ("scan", *MODEL, *ALL, *OTHERS, "--limit", "2"),
    "deep": ("scan", *MODEL, *NPZ, *OTHERS, *FEW, "--profile", "deep", "--ablation", "mean", "--limit", "1"),
    "time": ("scan", *MODEL, *NPZ, *OTHERS, *SERIES, "--profile", "fast"),
    "tied": ("scan", "tied.safetensors", *MODEL[1:], *NUMBERED, *OTHERS, "--profile", "fast"),
    "vit": (
        "scan",
        "vit/test_vit.safetensors",
        "--model-kwargs",
        "img_size=32",
        *VIT,
        *OTHERS,
        "--profile",
        "fast",
        "--limit",
        "3",
    ),
    "units": (*ERASE, "--all", "--max-test-drop", "100", "--clean-steps", "5"),
    "curvature": (*ERASE, *ALL, "--method", "curvature", "--clean-steps", "5"),
}

KEEPS = ("scan", "digits.safetensors", "--adapter", "forgetful.py:build", *MODEL[3:], *NPZ, "--out", "none", "-q")
# A network that keeps a tensor on the CPU; the same one where that is no fault.
FORGETFUL = [[*KEEPS, "--device", "second"], [*KEEPS, "--device", "cpu", "--limit", "1"]]


def line(name: str, device: str) -> list[str]:
    command = COMMANDS[name]
    out = ("--out", f"{name}-{device}") if command[0] == "scan" else ("-o", f"{name}-{device}/erased.safetensors")
    return [*command, *out, "--device", device, "-q"]


@dataclass(frozen=True)
class Runs:
    """What the commands left in `folder`, by device; by command its exit code on the CPU, and what was noted.

    Attributes:
        forgetful: the exit codes of `FORGETFUL`.
        said: what the other process wrote to its standard error.
    """

    folder: Path
    codes: dict[str, int]
    noted: dict[str, dict[str, Any]]
    forgetful: list[int]
    said: str

    def result(self, name: str, device: str) -> dict[str, Any]:
        file = "report.json" if COMMANDS[name][0] == "scan" else "erased.erase.json"
        found: dict[str, Any] = json.loads((self.folder / f"{name}-{device}" / file).read_text("utf-8"))
        if COMMANDS[name][0] == "scan":
            assert found["environment"].pop("device") == device
            del found["volatile"], found["command"]
        return found


def elsewhere(folder: Path, commands: list[list[str]]) -> tuple[str, Any]:
    """Run command lines in the other process: its standard error, and what it noted."""
    (folder / "commands.json").write_text(json.dumps(commands))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.second_device", "commands.json", "noted.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr, json.loads((folder / "noted.json").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = write_work(tmp_path_factory.mktemp("second"), trained)
    labels = trained.flagged.labels.numpy()
    np.savez(folder / "all-flagged.npz", x=trained.flagged.pixels.numpy(), y=labels, true_label=(labels + 1) % 10)
    clean = trained.reference.subset(range(80))
    np.savez(folder / "reference.npz", x=clean.pixels.numpy(), y=clean.labels.numpy())
    few = trained.flagged.subset(range(12))
    np.savez(folder / "numbered.npz", x=few.pixels.numpy(), y=few.labels.numpy(), id=np.arange(12) + 2**40)
    for name in ("run", "vit"):
        (folder / name).mkdir()
    state = trained.module.state_dict()
    for epoch, share in enumerate((0.2, 0.6)):
        earlier = {k: v * share if k.endswith(("weight", "bias")) else v for k, v in state.items()}
        save_file(earlier, folder / "run" / f"epoch-{epoch}.safetensors")
    tied: nn.Module = DigitsNet()
    add_tied_dropout(tied, input_size=(1, 8, 8))
    tied.load_state_dict(state, strict=False)
    save_file(tied.state_dict(), folder / "tied.safetensors")
    write_timm(folder / "vit", "test_vit", img_size=32)
    (folder / "forgetful.py").write_text(
        "import torch\nfrom network import DigitsNet\n\n\nclass Forgetful(DigitsNet):\n"
        "    def forward(self, x):\n        return super().forward(x) * torch.ones(10)\n\n\n"
        "def build():\n    return Forgetful()\n"
    )
    return folder


@pytest.fixture(scope="module")
def runs(work: Path) -> Runs:
    with pytest.MonkeyPatch.context() as patch, short_trainings():
        patch.chdir(work)
        patch.setattr(Evaluator, "pads", True)  # the last digits of a sum depend on the size of its batch
        codes = {name: int(run(line(name, "cpu"))) for name in COMMANDS}
    said, noted = elsewhere(work, [*(line(name, "second") for name in COMMANDS), *FORGETFUL])
    forgetful = [entry["code"] for entry in noted[len(COMMANDS) :]]
    return Runs(work, codes, dict(zip(COMMANDS, noted, strict=False)), forgetful, said)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_finds_the_same_there(runs: Runs, name: str) -> None:
    assert runs.noted[name]["code"] == runs.codes[name] <= 4
    assert runs.result(name, "second") == runs.result(name, "cpu")


@pytest.mark.parametrize("name", ["standard", "deep", "vit"])
def test_the_host_waits_for_results_alone(runs: Runs, name: str) -> None:
    """Never inside a forward pass; after one for the few tensors that are read, and where units are chosen."""
    waits, batches = runs.noted[name]["waits"], runs.noted[name]["batches"]
    assert not [place for place in waits if place.endswith("forward")]
    once = {place: count for place, count in waits.items() if place.startswith(("premises.py", "sites.py"))}
    chosen = {"population.py typical", "search.py extended", "search.py _planned", "search.py _best"}
    chosen |= {"promising.py <genexpr>"}
    chosen |= {"ranking.py sure"} if name == "standard" else set()
    # Relearning, planting: what is asked, what a killed run goes on from, and the proof that nothing is changed.
    asked = {"views.py __call__"}
    chosen |= asked | {"journal.py <dictcomp>", "states.py digest"}
    more = chosen if name != "vit" else asked | {"load.py answers", "states.py digest"}
    assert waits.keys() - once.keys() == {"passes.py __call__", "passes.py <genexpr>"} | more
    assert 0 < waits["passes.py __call__"] <= 2 * batches


def test_tensors_of_two_devices_are_refused(runs: Runs) -> None:
    """Or the tests above could not fail: a network that keeps a tensor on the CPU ends in an error."""
    assert runs.forgetful == [3, 4]
    assert "the network fails on a batch (8, 1, 8, 8) on second" in runs.said
    assert "tensors of two devices" in runs.said
    assert "register_buffer" in runs.said
