"""`--log mlflow`: figures, tags and files arrive in a local store; without the library it is said before a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memaudit.cli import logged
from memaudit.errors import EnvironmentFault, UsageError
from tests import report_samples as samples
from tests.report.test_officer import verification


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


def test_a_broken_store_says_that_the_report_is_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setattr(mlflow, "start_run", lambda **_: 1 / 0)
    with pytest.raises(EnvironmentFault, match="the report is written"):
        logged.log("mlflow", samples.small(), [])


def test_what_is_not_there_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    logged.check(None)
    logged.log(None, samples.small(), [])
    with pytest.raises(UsageError):
        logged.check("wandb")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match="not installed"):
        logged.check("mlflow")
