"""Classifiers that are no image network of one label: each trained with changed labels, and scanned as a user would."""

from __future__ import annotations

from pathlib import Path

import pytest

from memaudit.errors import ExitCode
from memaudit.report.document import Report
from tests.any_network import FAST, cases, write
from tests.cli_support import command

FLAGGED = 6


@pytest.mark.parametrize(
    "name", ["cancer", "digits", "signals", "volumes", "one_logit", "sigmoid", "several", "tokens"]
)
def test_changed_labels_are_found_fitted_and_localized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """No option says the shape of the examples, nor what the network returns."""
    arguments = write(cases()[name](), tmp_path, FLAGGED)
    ran = command(tmp_path, monkeypatch, capsys)("scan", *arguments, *FAST, "--out", "report", "--exit-zero")
    assert (ran.code, ran.err) == (ExitCode.OK, "")
    report = Report.model_validate_json((tmp_path / "report/report.json").read_text("utf-8"))
    summary = report.summary
    assert summary.fitted == summary.flagged == FLAGGED
    assert sum(bool(f.units) for f in report.findings) >= FLAGGED // 2
    assert summary.atypicality_auroc is not None
    assert summary.atypicality_auroc > 0.6
    for finding in report.findings:
        assert finding.controls is not None
        assert (finding.controls.augmented is None) == (name == "tokens")  # token ids have no copies like them
    warned = {w.code for w in report.warnings}
    assert ("MEM915" in warned) == (name == "volumes")  # a pair of tensors
    if name == "several":
        reference = report.data.reference
        assert [one.name for one in reference.by_label] == ["0", "1", "2"]
        assert reference.macro == pytest.approx(sum(one.accuracy for one in reference.by_label) / 3, abs=1e-6)
        assert {report.data.class_names[f.example.label] for f in report.findings} <= {
            f"{label}:{value}" for label in range(3) for value in (0, 1)
        }
