"""`--log mlflow`: figures and files of a report in an experiment tracker, by the tracker's own client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.cli.values import choice
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.document import Report
    from memaudit.report.verified import Verification

TRACKERS = ("mlflow",)
# What the tracker takes of a parameter's value.
LONGEST = 500


def check(tracker: str | None) -> None:
    """Refuse now rather than after a long run.

    Raises:
        UsageError: there is no such tracker, or its library is not installed.
    """
    choice(tracker, TRACKERS, "--log")
    if tracker is not None:
        _client()


def log(tracker: str | None, found: Report | Verification, paths: Sequence[Path]) -> None:
    """Log `found` as one run: parameters, figures, tags and files; where, the tracker's own settings say.

    Raises:
        EnvironmentFault: the tracker does not take it; the report itself is written.
    """
    if tracker is None:
        return
    client = _client()
    try:
        with client.start_run(run_name=clean(f"memaudit {found.model.path}", LONGEST)):
            client.set_tags({"memaudit.verdict": found.verdict, "memaudit.status": found.status, **_hashes(found)})
            client.log_params({_name(n): clean(str(s.value), LONGEST) for n, s in found.config.items()})
            client.log_metrics(metrics(found))
            for path in paths:
                client.log_artifact(str(path))
    except Exception as error:  # whatever the tracker or its server raises
        said = f"mlflow did not take the run (MLFLOW_TRACKING_URI says where): {clean(error, 300)}"
        raise EnvironmentFault(f"{said}; the report is written") from None


def metrics(found: Report | Verification) -> dict[str, float]:
    """The figures of `found` by name; what was not measured is left out."""
    from memaudit.report.verified import Verification

    values: dict[str, Any] = {}
    if isinstance(found, Verification):
        said = found.membership
        values |= {"membership.p_value": said.p_value, "membership.found": said.found, "membership.clear": said.clear}
        for attack in said.attacks:
            name = _name(attack.name)
            values |= {f"{name}.auc": attack.auc, f"{name}.epsilon": attack.epsilon}
            values |= {f"{name}.tpr_at_{rule.level:g}": rule.rate for rule in attack.rules}
    else:
        total = found.summary
        values |= {name: getattr(total, name) for name in ("flagged", "fitted", "memorized", "median_units")}
        values |= {"reference_accuracy": found.data.reference.accuracy, "reference_retained": total.reference_retained}
        values |= {"random_erased": total.random_erased}
        if total.memorization is not None:
            values |= {"power": total.memorization.power, "beyond_chance": total.memorization.beyond}
        if found.counterfactuals is not None:
            values |= {"difference": found.counterfactuals.difference}
    return {name: float(value) for name, value in values.items() if value is not None}


def _hashes(found: Report | Verification) -> dict[str, str]:
    return {"memaudit.model": clean(found.model.path), "memaudit.model_sha256": clean(found.model.sha256)}


def _name(text: str) -> str:
    """A name as the tracker takes it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ ") else "_" for c in text[:200])


def _client() -> Any:
    try:
        import mlflow
    except ImportError:
        raise UsageError("--log mlflow needs mlflow, which is not installed: pip install 'memaudit[mlflow]'") from None
    return mlflow
