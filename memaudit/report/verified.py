"""`Verification`: whether a model still tells flagged examples from unseen ones, as one document. No torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from memaudit.findings import (
    ConfigValue,
    Counterfactuals,
    DataSource,
    Erasure,
    Gate,
    Inputs,
    Membership,
    ModelInfo,
    OtherModel,
    Plain,
    ReportWarning,
    ToolInfo,
)

# 1: first version.
SCHEMA_VERSION = 1


class Verification(Plain):
    """What `memaudit verify` found. `verification.json` is this model and nothing else."""

    kind: Literal["verification"] = "verification"
    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    verdict: Literal["pass", "fail"]
    tool: ToolInfo
    command: str
    inputs: Inputs = {}
    by: str = Field(default="", description="who ran it, where that was given")
    config: dict[str, ConfigValue]
    environment: dict[str, str]
    volatile: dict[str, Any] = Field(description="times: the only block that may differ between two runs")
    model: ModelInfo
    flagged: DataSource
    reference: DataSource
    unseen: DataSource
    class_names: list[str]
    class_order: str
    without: list[OtherModel] = Field(default=[], description="models that were trained without the flagged examples")
    membership: Membership
    counterfactuals: Counterfactuals | None = None
    erasure: Erasure | None = Field(default=None, description="the edit that made the model, where it is one")
    warnings: list[ReportWarning] = []
    gate: Gate

    def save(self, path: str | Path) -> Path:
        """Write it to `path`; the name chooses the format (`.json`, `.html`, `.md`, `.csv`, `officer*.html`).

        Raises:
            UsageError: for a name that no renderer knows.
        """
        from memaudit.report.verification import writing

        return writing.write_all(self, [Path(path)])[0]
