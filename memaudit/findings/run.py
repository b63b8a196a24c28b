"""The run itself: tool, settings, model, data, warnings, the gate and the effort."""

from typing import Literal

from pydantic import Field

from memaudit.findings.base import Number, Plain, Rate


class ToolInfo(Plain):
    """Who wrote the report."""

    name: str = "memaudit"
    version: str


class ConfigValue(Plain):
    """One setting that shaped the numbers, and where its value came from."""

    value: str | int | float | bool | list[str] | None
    origin: str = Field(description="flag, environment, config, checkpoint, measured or default")


Inputs = dict[str, str | int | list[str]]
"""Options by name (`class_order`) that a later command needs to read the same model and examples again."""


class ModelInfo(Plain):
    """The audited checkpoint."""

    path: str
    sha256: str
    md5: str = Field(default="", description="of a checkpoint in one file: what a .dvc file holds")
    architecture: str | None
    adapter: str
    num_classes: int = Field(ge=1)
    parameters: int = Field(ge=0)
    weights: Literal["raw", "ema"] = "raw"
    stripped_prefix: str = ""
    dtype: str
    candidates: list[str] = Field(default=[], description="architectures that fit the tensors equally well")


class LabelAccuracy(Plain):
    """One of several labels that an example may have at once: how often the network is right about it."""

    label: int = Field(ge=0, description="its number; it is classes 2 n (absent) and 2 n + 1 (there)")
    name: str
    examples: int = Field(ge=0)
    positive: int = Field(ge=0, description="of these, how many have the label")
    accuracy: Rate
    low: Rate
    high: Rate
    sensitivity: Rate | None = Field(default=None, description="share right where the label is there")
    specificity: Rate | None = Field(default=None, description="share right where it is absent")


class DataSource(Plain):
    """One set of examples."""

    source: str
    count: int = Field(ge=0)
    sha256: str
    drawn_from: int | None = Field(default=None, ge=0, description="how many the source lists, where these were drawn")
    accuracy: Rate | None = None
    low: Rate | None = Field(default=None, description="95 % Wilson interval of `accuracy`")
    high: Rate | None = None
    by_label: list[LabelAccuracy] = Field(default=[], description="where an example has several labels at once")
    macro: Rate | None = Field(default=None, description="mean accuracy over those labels")


class DataInfo(Plain):
    """The examples the audit saw."""

    flagged: DataSource
    reference: DataSource
    test: DataSource | None = None
    class_names: list[str]
    class_order: str


class ReportWarning(Plain):
    """Something a reader must know before trusting a figure."""

    code: str
    message: str


class Gate(Plain):
    """The policy and what it says."""

    policy: dict[str, str]
    failed: list[str] = []
    waived: list[str] = Field(default=[], description="ids of memorized findings that a waiver accepts")
    reasons: dict[str, str] = Field(default={}, description="by waived id: why, who answers for it, until when")
    known: list[str] = Field(default=[], description="ids of memorized findings that the baseline has too")
    baseline: str | None = Field(default=None, description="the baseline report, where there was one")


class Effort(Plain):
    """What the localization cost, in examples forwarded; a backward pass counts as one and a half."""

    search: Number = Field(description="the search, with the reference examples its risk is predicted on")
    verification: Number = Field(description="every control, the neurons' own costs, the curve, matched clean examples")
    ratio: Number | None = Field(description="verification over search")
