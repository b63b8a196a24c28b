"""A working directory with an audit in it, and the commands that edit what it found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from memaudit.__main__ import run
from memaudit.errors import ExitCode
from tests.cli_support import FAST, MODEL, NPZ, Command, command, copied, write_work
from tests.conftest import Trained, digits
from tests.networks import DigitsNet

ERASE = ("erase", "report/report.json", "--model", "digits.safetensors", "-q")
ALL = (*ERASE, "--all", "--max-test-drop", "100", "--clean-steps", "5")


def plain(path: Path) -> nn.Module:
    """The file as a user without memaudit loads it."""
    network = DigitsNet()
    network.load_state_dict(load_file(path))
    return network.eval()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A working directory with an audit in it. Tests get copies."""
    folder = write_work(tmp_path_factory.mktemp("finished"), trained)
    np.savez(
        folder / "all-flagged.npz",
        x=trained.flagged.pixels.numpy(),
        y=trained.flagged.labels.numpy(),
        true_label=(trained.flagged.labels.numpy() + 1) % 10,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["scan", *MODEL, *NPZ, *FAST, "--out", "report"]) == ExitCode.POLICY
    x, truth = digits()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[1300:]
    np.savez(folder / "held-out.npz", x=x[rows].numpy(), y=truth[rows].numpy())
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    return copied(finished, tmp_path / "work")


@pytest.fixture
def cli(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(work, monkeypatch, capsys)
