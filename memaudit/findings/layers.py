"""Layers and the checkpoint series: units by layer, and what the audits over time say of each layer group."""

from enum import StrEnum

from pydantic import Field

from memaudit.findings.base import Kind, Number, Plain, Rate


class LayerUnits(Plain):
    """One layer's units."""

    layer: str
    kind: Kind
    width: int = Field(ge=1)
    dead: int = Field(default=0, ge=0)


class Units(Plain):
    """What could be cut."""

    total: int = Field(ge=0)
    dead: int = Field(ge=0, description="no variance over the reference: no candidates, no random draws")
    by_layer: list[LayerUnits]


class LayerVerdict(StrEnum):
    """What one layer group is to the memorized labels."""

    REDUNDANT = "redundant"  # the flagged labels are predicted without what it learned of them
    CRITICAL = "critical"  # clean examples come back without it, the flagged labels do not
    UNDECIDED = "undecided"  # the interval holds one half, or clean examples are lost as well


class SeriesPoint(Plain):
    """One checkpoint of the series, the audited model last, and what it predicts as a whole."""

    checkpoint: str = Field(description="what the report calls it: 'epoch 3', 'step 500' or the file's name")
    file: str = ""
    epoch: Number | None = None
    step: int | None = None
    sha256: str = ""
    final: bool = Field(default=False, description="it equals the audited model")
    flagged: Rate | None = Field(default=None, description="share of flagged examples predicted with their label")
    reference: Rate | None = None
    matched: Rate | None = Field(default=None, description="of clean examples of the same labels and similar margins")
    flagged_examples: int = Field(default=0, ge=0, description="examples that the shares are of")
    reference_examples: int = Field(default=0, ge=0)
    matched_examples: int = Field(default=0, ge=0)
    flagged_confidence: Rate | None = Field(default=None, description="mean softmax probability of the flagged label")
    reference_confidence: Rate | None = None
    matched_confidence: Rate | None = None


class GradientPoint(Plain):
    """What one layer group's gradient was at one checkpoint; BatchNorm by the batch, dropout off.

    Norms are of the gradient of the summed loss of all flagged examples (of all reference ones, of clean ones matched
    to the flagged), over the root of the group's parameter count.
    """

    checkpoint: str
    flagged: Number
    reference: Number
    matched: Number | None = None
    ratio: Number | None = Field(description="norm per flagged example over norm per reference example")
    matched_ratio: Number | None = Field(default=None, description="the same for matched clean examples")
    cosine: Number | None = Field(description="between the flagged and the reference gradient")
    matched_cosine: Number | None = None


class RewindPoint(Plain):
    """Accuracies with one layer group put back to one checkpoint, all else as it is.

    `flagged` and `matched` are the shares of fitted flagged examples, and of their matched clean ones, that are still
    predicted; `recalibrated` is after re-estimating BatchNorm from that group on, on reference examples.
    """

    checkpoint: str
    flagged: Rate
    flagged_low: Rate = Field(description="95 % bootstrap interval over flagged examples")
    flagged_high: Rate
    reference: Rate
    matched: Rate | None = None
    flagged_recalibrated: Rate | None = None
    recalibrated_low: Rate | None = Field(default=None, description="interval of `flagged_recalibrated`")
    recalibrated_high: Rate | None = None
    reference_recalibrated: Rate | None = None
    matched_recalibrated: Rate | None = None


class RetrainEpoch(Plain):
    """Accuracies after so many epochs of retraining, averaged over seeds."""

    epoch: int = Field(ge=0)
    flagged: Rate
    reference: Rate
    matched: Rate | None = None


class Retrain(Plain):
    """One layer group put back and trained again on reference examples alone, all else frozen."""

    checkpoint: str = Field(description="what the group was put back to")
    flagged: Rate = Field(description="share of fitted flagged labels that came back without being shown")
    low: Rate = Field(description="95 % bootstrap interval over flagged examples and seeds")
    high: Rate
    reference: Rate = Field(description="accuracy on the examples it was trained on")
    matched: Rate | None = Field(default=None, description="clean examples left out of the training that came back")
    matched_low: Rate | None = None
    matched_high: Rate | None = None
    reference_before: Rate = Field(description="accuracy of the intact model on the same examples")
    fitted: bool = Field(description="the reference came back within the budget, for every seed")
    seeds: list[int]
    epochs: list[RetrainEpoch]
    budget: int = Field(ge=0, description="most epochs a seed may take")
    rate: Number = Field(description="learning rate of AdamW, without weight decay")
    examples: int = Field(ge=0, description="reference examples it was trained on")


class LayerEvidence(Plain):
    """What the audits over time say of one layer group; `layer` is the prefix of its tensors' names."""

    layer: str
    parameters: int = Field(ge=0)
    gradients: list[GradientPoint] = []
    rewind: list[RewindPoint] = []
    retrain: Retrain | None = None
    verdict: LayerVerdict | None = None
    sentence: str = Field(default="", description="the verdict and what it rests on, in words")
