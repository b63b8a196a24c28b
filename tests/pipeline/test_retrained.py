"""A retrained network has other neurons in other places; the gate goes by examples, so it must not notice."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memaudit import report
from memaudit.report.document import Report
from tests.cli_support import FAST, FLAGGED, NPZ, Command, command, write_work
from tests.conftest import Trained
from tests.networks import DigitsNet


def permuted(network: DigitsNet) -> DigitsNet:
    """The same function with the channels of every layer in another order."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    before: Tensor | None = None
    for block in (other.one, other.two, other.three):
        convolution, norm = block[0], block[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        order = torch.randperm(convolution.out_channels, generator=generator)
        weight = convolution.weight if before is None else convolution.weight[:, before]
        convolution.weight = nn.Parameter(weight[order].clone(), requires_grad=False)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(norm, name)
            tensor.data = tensor.data[order].clone()
        before = order
    assert before is not None
    pixels = (before[:, None] * 4 + torch.arange(4)).flatten()
    other.head.weight = nn.Parameter(other.head.weight[:, pixels].clone(), requires_grad=False)
    return other


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = write_work(tmp_path_factory.mktemp("retrained"), trained)
    other = permuted(trained.module)
    x = trained.reference.pixels[:50]
    assert torch.allclose(other(x), trained.module(x), atol=1e-4)
    save_file(other.state_dict(), folder / "again.safetensors")
    more = trained.flagged.subset(range(FLAGGED + 1))
    np.savez(folder / "one-more.npz", x=more.pixels.numpy(), y=more.labels.numpy())
    return folder


@pytest.fixture
def cli(audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(audited, monkeypatch, capsys)


def scan(cli: Command, model: str, out: str, *more: str) -> tuple[int, Report]:
    data = NPZ if "--flagged" not in more else NPZ[2:]
    shape = ("--adapter", "network.py:build", "--input-size", "1,8,8")
    ran = cli("scan", model, *shape, *data, *FAST, "--out", out, *more)
    return ran.code, report.read(Path(out) / "report.json")


def test_the_gate_goes_by_examples_and_not_by_neurons(cli: Command) -> None:
    code, old = scan(cli, "digits.safetensors", "old")
    assert code == 1
    code, new = scan(cli, "again.safetensors", "new", "--baseline", "old/report.json")
    assert code == 0
    assert new.gate.known == [f.id for f in new.findings if f.memorized] != []
    assert {u.index for f in old.findings for u in f.units} != {u.index for f in new.findings for u in f.units}
    shown = cli("diff", "old/report.json", "new/report.json")
    assert shown.code == 0
    assert shown.out.startswith(f"unchanged: {old.summary.memorized} memorized examples (0 new, 0 gone, ")
    data = json.loads(cli("diff", "old/report.json", "new/report.json", "-f", "json").out)
    assert data["counts"] == {"new": 0, "gone": 0, "unchanged": old.summary.memorized}
    assert cli("check", "new/report.json", "--baseline", "old/report.json").code == 0
    # one more flagged example that is memorized
    flagged = ("--flagged", "one-more.npz", "--baseline", "old/report.json")
    code, more = scan(cli, "again.safetensors", "more", *flagged)
    assert code == 1
    assert more.summary.memorized == old.summary.memorized + 1
    beside = "neither waived nor in the baseline"
    said = f"max_memorized: 1 of {FLAGGED + 1} flagged examples are memorized, {beside}; allowed: 0"
    assert more.gate.failed == [said]
