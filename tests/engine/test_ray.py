"""A real Ray cluster of two nodes on this machine: workers are killed, the report is that of one process."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memaudit.__main__ import run
from memaudit.audits.memorization import power
from memaudit.errors import ExitCode
from tests.cli_support import FAST, MODEL, NPZ, write_work
from tests.conftest import MOST_EPOCHS, Trained
from tests.pipeline.test_identity import forked

SCAN = ("scan", *MODEL, *NPZ, *FAST, "--threads", "1")
# Each process but the one that asks dies at its third pass, as long as there are lives to lose.
DYING = """
_passes = [0]

def _die():
    _passes[0] += 1
    folder = os.environ.get("LIVES")
    if folder and _passes[0] == 3:
        for name in os.listdir(folder):
            try:
                os.unlink(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lives")


@pytest.fixture(scope="module")
def cluster(lives: Path) -> Iterator[str]:
    """The address of two nodes of one core each; what they start finds `lives`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("LIVES", str(lives))
        utils = importlib.import_module("ray.cluster_utils")
        node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        cluster = utils.Cluster(
            initialize_head=True, head_node_args={**node, "include_dashboard": False}, shutdown_at_exit=False
        )
        cluster.add_node(**node)
        patch.delenv("LIVES")
        yield cluster.address
        cluster.shutdown()


def test_killed_workers_change_nothing(
    cluster: str, lives: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "MOST_EPOCHS", MOST_EPOCHS)  # as the workers have it
    folder = write_work(tmp_path, trained)
    network = folder / "network.py"
    head = "def forward(self, x: Tensor) -> Tensor:\n"
    network.write_text("import os\n" + network.read_text().replace(head, head + "        _die()\n") + DYING)
    assert forked(folder, (*SCAN, "--out", "alone")).code == ExitCode.POLICY
    for number in range(3):
        (lives / str(number)).touch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.setenv("CI", "1")
    assert run([*SCAN, "--out", "spread", "--error-json", "ended.json"]) == ExitCode.POLICY
    assert not os.listdir(lives)  # three were killed
    assert json.loads((folder / "ended.json").read_text()) == {"schema_version": 1, "exit_code": 1, "error": None}
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("alone", "spread")]
    volatile = [report.pop("volatile") for report in reports]
    assert [v["workers"] for v in volatile] == [1, 2]
    del reports[0]["command"], reports[1]["command"]
    assert reports[0] == reports[1]
