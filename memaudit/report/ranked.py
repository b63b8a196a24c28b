"""`Ranking`: a training set ranked by memorization, as one document. Every view of it is drawn from this. No torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from memaudit.findings import ConfigValue, DataSource, Inputs, ModelInfo, Plain, ReportWarning, ToolInfo
from memaudit.findings.ranking import ClassPair, ClassRow, CutOff, Ranked, Shares, Twins
from memaudit.report.ranking import documents

# 1: first version.
SCHEMA_VERSION = 1


class Ranking(Plain):
    """What `memaudit discover` found. `ranking.json` is this model and nothing else."""

    kind: Literal["ranking"] = "ranking"
    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    tool: ToolInfo
    command: str
    inputs: Inputs = {}
    following: str = Field(default="", description="the command that audits what was flagged")
    config: dict[str, ConfigValue]
    environment: dict[str, str]
    volatile: dict[str, Any] = Field(description="times and memory: the only block that may differ between two runs")
    passes: dict[str, int] = Field(default={}, description="examples forwarded and backwarded, by stage")
    effort: float = Field(description="forward passes per example; a backward pass counts as one and a half")
    model: ModelInfo
    data: DataSource
    class_names: list[str]
    class_order: str
    parts: dict[str, str] = Field(description="the kinds of evidence, by name, and what each one is")
    shares: Shares
    ranked: list[Ranked] = Field(description="the head of the ranking; all of it is in the table (-o ranking.csv)")
    cut_offs: list[CutOff]
    classes: list[ClassRow]
    pairs: list[ClassPair]
    twins: list[Twins]
    twins_in_all: int = Field(ge=0, description="near-duplicates with different labels, those beyond `twins` included")
    warnings: list[ReportWarning] = []

    def save(self, path: str | Path, thumbnails: dict[str, bytes] | None = None) -> Path:
        """Write the ranking to `path`; the suffix chooses the format (`.json`, `.html`, `.md`).

        Raises:
            UsageError: for a suffix that no renderer knows.
        """
        return documents.write(self, Path(path), thumbnails or {})
