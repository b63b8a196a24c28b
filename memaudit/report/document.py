"""`Report`: everything one audit found, as one document. Every view is drawn from it. No torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from memaudit.findings import (
    ConfigValue,
    Counterfactuals,
    DataInfo,
    Effort,
    Erasure,
    Finding,
    Gate,
    Groups,
    Inputs,
    KnownUnits,
    LayerEvidence,
    ModelInfo,
    Neuron,
    Plain,
    ReportWarning,
    SeriesPoint,
    Slice,
    Summary,
    ToolInfo,
    Units,
)
from memaudit.report import formats, opening

# 1: first version.
SCHEMA_VERSION = 1


class Report(Plain):
    """Everything one audit found. `report.json` is this model and nothing else."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    verdict: Literal["pass", "fail"]
    tool: ToolInfo
    command: str
    inputs: Inputs = Field(
        default={}, description="options that later commands read the same model and examples by; paths from this file"
    )
    by: str = Field(default="", description="who ran it, where that was given")
    config: dict[str, ConfigValue]
    environment: dict[str, str]
    volatile: dict[str, Any] = Field(description="times and memory: the only block that may differ between two runs")
    passes: dict[str, int] = Field(default={}, description="examples forwarded and backwarded, by stage")
    effort: Effort | None = None
    model: ModelInfo
    data: DataInfo
    units: Units
    summary: Summary
    findings: list[Finding]
    neurons: list[Neuron]
    groups: Groups
    slices: list[Slice] = Field(
        default=[], description="shares by label, confidence and manifest column, the largest gaps first"
    )
    known_units: KnownUnits | None = Field(default=None, description="for networks with example-tied dropout")
    counterfactuals: Counterfactuals | None = Field(
        default=None, description="models that were trained without the flagged examples, where some were given"
    )
    series: list[SeriesPoint] = Field(default=[], description="checkpoints that the audits over time used, in order")
    layers: list[LayerEvidence] = []
    erasure: Erasure | None = Field(default=None, description="an edited copy of the model, where one was made")
    warnings: list[ReportWarning] = []
    gate: Gate

    def save(self, path: str | Path, thumbnails: dict[str, bytes] | None = None) -> Path:
        """Write the report to `path`; the suffix chooses the format (`.json`, `.html`).

        Args:
            path: where to write; the file is replaced atomically.
            thumbnails: PNG bytes by example id, shown in HTML only.

        Raises:
            UsageError: for a suffix that no renderer knows.
        """
        return formats.write(self, Path(path), thumbnails=thumbnails)

    def __str__(self) -> str:
        """A summary of ten lines; the whole is in the fields."""
        return opening.ten_lines(self)

    def _repr_html_(self) -> str:
        """Notebooks show the report's own page, in a frame so that its style stays inside."""
        from memaudit.report import html

        return html.embed(self)
