"""`--log`: figures, tags and files arrive in a local store; without the library it is said before a run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from memaudit.cli import logged
from memaudit.errors import EnvironmentFault, UsageError
from tests import report_samples as samples
from tests.report.test_officer import verification

TAGS = ("memaudit.verdict", "memaudit.status", "memaudit.model", "memaudit.model_sha256")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_report_arrives(store: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri((store / "runs").as_uri())
    for found in (samples.hostile(), samples.small(), verification()):
        file = store / "report.json"
        file.write_text("{}")
        logged.log("mlflow", found, [file])
        run = mlflow.last_active_run()
        assert run is not None
        kept = mlflow.get_run(run.info.run_id)
        assert kept.data.tags["memaudit.verdict"] == found.verdict
        assert {n: pytest.approx(v) for n, v in logged.metrics(found).items()} == kept.data.metrics
        assert [a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == ["report.json"]
    assert logged.metrics(verification())["loss.tpr_at_0.01"] == 0.06


def test_a_report_arrives_in_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what would be sent lies in the folder of the run."""
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "report.json"
    file.write_text("{}")
    logged.log("wandb", verification(), [file])
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"loss.tpr_at_0.01" in written.read_bytes()


class Recorder:
    """As much of the client of Weights & Biases as is used; it keeps what it is given."""

    __file__ = "wandb/__init__.py"

    def __init__(self) -> None:
        self.given: dict[str, Any] = {"files": []}
        self.summary = self

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **given: Any) -> Recorder:
        self.given |= given
        return self

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.given["finished"] = True

    def update(self, values: dict[str, Any]) -> None:
        self.given["summary"] = values

    def Artifact(self, name: str, type: str) -> Recorder:
        return self

    def add_file(self, path: str) -> None:
        self.given["files"].append(Path(path).name)

    def log_artifact(self, artifact: Recorder) -> None:
        self.given["sent"] = artifact is self


def test_what_weights_and_biases_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (samples.hostile(), verification()):
        client = Recorder()
        monkeypatch.setitem(sys.modules, "wandb", client)
        logged.check("wandb")
        logged.log("wandb", found, [tmp_path / "report.json"])
        given = client.given
        assert given["summary"] == {**logged.metrics(found), **{n: given["summary"][n] for n in TAGS}}
        assert given["summary"]["memaudit.verdict"] == found.verdict
        assert all(value.isprintable() for value in (given["name"], *given["config"].values()))
        assert (given["files"], given["sent"], given["finished"]) == (["report.json"], True, True)
        assert given["settings"]["console"] == "off", "a scan's own output is not sent"


def test_a_broken_store_says_that_the_report_is_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setattr(mlflow, "start_run", lambda **_: 1 / 0)
    with pytest.raises(EnvironmentFault, match="the report is written"):
        logged.log("mlflow", samples.small(), [])


def test_what_is_not_there_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    logged.check(None)
    logged.log(None, samples.small(), [])
    with pytest.raises(UsageError):
        logged.check("tensorboard")
    for name in logged.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match="not installed"):
            logged.check(name)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(UsageError, match="not installed"):
        logged.check("wandb")
