"""`--log mlflow` and `--log wandb`: figures and files of a report in a tracker of experiments, by its own client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memaudit.cli.values import choice
from memaudit.errors import EnvironmentFault, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.document import Report
    from memaudit.report.verified import Verification

# By name, the variable that says where its runs go.
TRACKERS = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_MODE"}
# What MLflow takes of a parameter's value.
LONGEST = 500


def check(tracker: str | None) -> None:
    """Refuse now rather than after a long run.

    Raises:
        UsageError: there is no such tracker, or its library is not installed.
    """
    choice(tracker, tuple(TRACKERS), "--log")
    if tracker is not None:
        _client(tracker)


def log(tracker: str | None, found: Report | Verification, paths: Sequence[Path]) -> None:
    """Log `found` as one run: parameters, figures, tags and files; where, the tracker's own settings say.

    Raises:
        EnvironmentFault: the tracker does not take it; the report itself is written.
    """
    if tracker is None:
        return
    run = Run(
        name=clean(f"memaudit {found.model.path}", LONGEST),
        tags={"memaudit.verdict": found.verdict, "memaudit.status": found.status, **_hashes(found)},
        settings={_name(n): clean(str(s.value), LONGEST) for n, s in found.config.items()},
        figures=metrics(found),
        files=[str(path) for path in paths],
    )
    client, write = _client(tracker), _to_mlflow if tracker == "mlflow" else _to_wandb
    try:
        write(client, run)
    except Exception as error:  # whatever the tracker or its server raises
        said = f"{tracker} did not take the run ({TRACKERS[tracker]} says where): {clean(error, 300)}"
        raise EnvironmentFault(f"{said}; the report is written") from None


@dataclass(frozen=True)
class Run:
    """What is logged of one report."""

    name: str
    tags: Mapping[str, str]
    settings: Mapping[str, str]
    figures: Mapping[str, float]
    files: Sequence[str]


def _to_mlflow(client: Any, run: Run) -> None:
    with client.start_run(run_name=run.name):
        client.set_tags(run.tags)
        client.log_params(run.settings)
        client.log_metrics(run.figures)
        for file in run.files:
            client.log_artifact(file)


def _to_wandb(client: Any, run: Run) -> None:
    """A run whose summary holds figures and tags; the files are one artifact. What the terminal shows is not sent."""
    quiet = client.Settings(console="off", silent=True)
    with client.init(name=run.name, config=dict(run.settings), job_type="audit", settings=quiet) as sent:
        sent.summary.update({**run.tags, **run.figures})
        kept = client.Artifact("memaudit-report", type="report")
        for file in run.files:
            kept.add_file(file)
        sent.log_artifact(kept)


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


def _client(tracker: str) -> Any:
    try:
        found = import_module(tracker)
        if getattr(found, "__file__", None) is None:  # a folder of runs with the library's name
            raise ImportError
        return found
    except ImportError:
        needs = f"--log {tracker} needs {tracker}, which is not installed: pip install 'memaudit[{tracker}]'"
        raise UsageError(needs) from None
