"""A scan that is killed anywhere, and the same command again: the uninterrupted report, one batch at most lost."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from memaudit.__main__ import run
from memaudit.engine.journal import FILE
from memaudit.errors import ExitCode
from memaudit.system import failpoints
from tests.cli_support import MODEL, NPZ, Ran, copied, tree, write_work
from tests.conftest import Trained, digits
from tests.networks import DigitsNet
from tests.quick import load_for_forks

AUDITS = "localize,gradients,rewind,retrain"
SCAN = (
    "scan", *MODEL, *NPZ, "--profile", "fast", "--images", "none", "-q", "--audit", AUDITS, "--batch-size", "64",
    "--checkpoints", "states", "--layers", "three*", "--without", "other.safetensors", "--out", "report",
)  # fmt: skip
COUNTED = "        __import__('os').write(3, b'.')\n"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    return prepare(tmp_path_factory.mktemp("ready"), trained)


def prepare(place: Path, trained: Trained) -> Path:
    """A folder with a network, two earlier states of it, another network, a few examples, and a whole report."""
    folder = write_work(place, trained)
    (folder / "states").mkdir()
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = DigitsNet()
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        for epoch in (1, 2):
            for rows in torch.randperm(1000).split(64):
                optimizer.zero_grad()
                F.cross_entropy(module(x[rows]), y[rows]).backward()
                optimizer.step()
            save_file(module.state_dict(), folder / "states" / f"epoch-{epoch}.safetensors")
    shutil.copy(folder / "states/epoch-2.safetensors", folder / "other.safetensors")
    network = folder / "network.py"
    head = "def forward(self, x: Tensor) -> Tensor:\n"
    network.write_text(network.read_text().replace(head, head + COUNTED))
    load_for_forks()
    assert scan(folder).code == ExitCode.POLICY
    return folder


@pytest.fixture
def work(ready: Path, tmp_path: Path) -> Path:
    """The same without the report."""
    folder = copied(ready, tmp_path / "work")
    shutil.rmtree(folder / "report")
    return folder


def scan(folder: Path, *more: str, **environment: str) -> Ran:
    """Run the scan of this file."""
    return forked(folder, (*SCAN, *more), **environment)


def forked(folder: Path, argv: Sequence[str], **environment: str) -> Ran:
    """Run a command in a process of its own, forked because loading torch takes longer; `out` counts forward calls."""
    (folder / "calls").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(folder)
            os.environ.update(environment)
            for number, name in ((3, "calls"), (2, "stderr"), (1, "stdout")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            failpoints._passed.clear()
            code = run(list(argv))
            sys.stdout.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = [(folder / name).read_text() for name in ("calls", "stderr", "stdout")]
    for name in ("calls", "stderr", "stdout"):
        (folder / name).unlink()
    return Ran(code, texts[0], texts[1])


def report(folder: Path) -> dict[str, object]:
    data = json.loads((folder / "report/report.json").read_text())
    del data["volatile"]
    return data


# `python -m tests.hostile.kill` takes every step of `failpoints.POINTS`, and 50 random moments.
KILLS = [
    "journal.header",
    "journal.line:60",
    "journal.half:200",
    "journal.state:6",
    "journal.state:30",
    "publish.half",
    "publish.renamed",
]


@pytest.mark.parametrize("point", KILLS)
def test_killed_at_any_step_the_same_command_ends_with_the_same_report(ready: Path, work: Path, point: str) -> None:
    killed = scan(work, **{failpoints.VARIABLE: point})
    assert killed.code == -9
    resumed = scan(work)
    assert (resumed.code, resumed.err) == (ExitCode.POLICY, "")
    assert report(work) == report(ready)
    assert set(tree(work)) == set(tree(ready))  # no journal, no lock, no half-written file


@pytest.mark.parametrize("point", ["journal.line:12", "journal.line:60", "journal.half:120", "journal.state:30"])
def test_at_most_one_batch_is_measured_twice(calls: dict[str, int], work: Path, point: str) -> None:
    """Counted where it happens: the network's own forward writes a byte for every call."""
    killed, resumed = scan(work, **{failpoints.VARIABLE: point}), scan(work)
    assert killed.code == -9
    twice = len(killed.out) + len(resumed.out) - calls["whole"]
    # Every process looks at premises, units and layers anew (at all, and at those that are named: two calls); the batch
    # that was cut short is one call in these loops.
    assert calls["checks"] <= twice <= calls["checks"] + 3


@pytest.fixture(scope="module")
def calls(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Forward calls of a whole scan, and of one that is killed before it measures anything."""
    folder = Path(shutil.copytree(ready, tmp_path_factory.mktemp("calls") / "work"))
    shutil.rmtree(folder / "report")
    checks = scan(folder, **{failpoints.VARIABLE: "journal.create"})
    return {"checks": len(checks.out), "whole": len(scan(folder).out)}


def test_another_command_does_not_go_on_with_it(work: Path) -> None:
    scan(work, **{failpoints.VARIABLE: "journal.line:12"})
    before = tree(work)
    del before["report/.lock"]  # of the killed process; nobody holds it
    other = scan(work, "--seed", "5")
    assert other.code == ExitCode.USAGE
    assert "report/journal.jsonl was begun with another seed" in other.err
    assert "seed: 0 then, 5 now" in other.err
    assert tree(work) == before
    assert scan(work, "--max-memorized", "100%", "--time-limit", "900").code == ExitCode.OK  # shapes no number


def test_fresh_starts_anew(work: Path) -> None:
    scan(work, **{failpoints.VARIABLE: "journal.line:12"})
    assert scan(work, "--seed", "5", "--fresh").code == ExitCode.POLICY
    assert json.loads((work / "report/report.json").read_text())["volatile"]["resumed_batches"] == 0
    assert not (work / "report" / FILE).exists()


def test_a_changed_model_is_another_run(work: Path) -> None:
    scan(work, **{failpoints.VARIABLE: "journal.line:12"})
    network = work / "network.py"
    network.write_text(network.read_text() + "\n# changed\n")
    other = scan(work)
    assert (other.code, "another adapter code" in other.err) == (ExitCode.USAGE, True)


@pytest.mark.parametrize("point", ["journal.half:20:full", "journal.state:3:full", "publish.half:2:full"])
def test_a_full_disk_keeps_the_old_report_and_the_journal(ready: Path, work: Path, point: str) -> None:
    shutil.copytree(ready / "report", work / "report")
    full = scan(work, **{failpoints.VARIABLE: point})
    assert full.code == ExitCode.ENVIRONMENT
    assert "No space left on device" in full.err
    assert "batches are kept in report/journal.jsonl" in full.err
    after = tree(work / "report")
    assert {n: c for n, c in after.items() if not n.startswith("journal")} == tree(ready / "report")
    assert after[FILE]
    assert scan(work).code == ExitCode.POLICY
    assert report(work) == report(ready)


def test_a_time_limit_that_is_reached_is_no_end(ready: Path, work: Path) -> None:
    early = scan(work, "--time-limit", "0.01")
    assert early.code == ExitCode.INCOMPLETE
    assert (work / "report" / FILE).exists()
    assert json.loads((work / "report/report.json").read_text())["status"] == "incomplete"
    assert scan(work).code == ExitCode.POLICY
    found, expected = report(work), report(ready)
    assert found == expected
    assert not (work / "report" / FILE).exists()
