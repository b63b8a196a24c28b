"""An edited copy of the checkpoint, and everything that was measured of it."""

from pydantic import Field

from memaudit.findings.base import Number, Plain, Prediction, Rate, UnitRef
from memaudit.findings.membership import Membership


class ErasureScores(Plain):
    """What one file predicts, of flagged examples that the original fits and of clean ones."""

    used: Rate | None = Field(description="flagged labels predicted, of the examples the edit was made or chosen with")
    unused: Rate | None = Field(description="flagged labels predicted, of the examples the edit never saw")
    true_label: Rate | None = Field(description="true labels predicted, of the flagged examples that have one")
    reference: Rate
    test: Rate | None = Field(description="accuracy on test examples that chose nothing")
    by_class: list[Rate | None] = Field(description="accuracy by class, on the test examples, else on the reference")

    @property
    def accuracy(self) -> float:
        """On the test examples, else on the reference, which the network was perhaps trained on."""
        return self.reference if self.test is None else self.test


class ErasedExample(Plain):
    """One example that the edit was made for, measured alone on the written file."""

    id: str = Field(description="the finding's")
    before: Prediction
    after: Prediction
    as_reported: bool = Field(description="`after` equals that of the audit, which cut this example's units alone")


class EditedLayer(Plain):
    """One layer whose weights keep only their high-curvature components."""

    layer: str
    curvature: Rate = Field(description="share of the layer's curvature that is kept")
    components: Rate = Field(description="share of its components that hold it")


class TriedEdit(Plain):
    """An edit that was tried, on examples that no final figure is measured on."""

    layers: list[str]
    curvature: Rate | None = Field(default=None, description="share of the layers' curvature that is kept")
    how: str = Field(default="", description="what is put in place of the layers' own weights, in words")
    clean_steps: int = Field(default=0, ge=0, description="steps of training on clean examples that are part of it")
    flagged: Rate = Field(description="flagged labels predicted, of the examples used for choosing")
    validation: Rate = Field(description="accuracy on the validation examples")
    chosen: bool = False


class RelearnPoint(Plain):
    """Flagged labels predicted after so many steps of training the edited file."""

    steps: int = Field(ge=0)
    rest: Rate = Field(description="labels of examples not trained on, when other flagged examples were")
    control: Rate | None = Field(description="the same, when as many reference examples were trained on instead")


class InputPoint(Plain):
    """Labels that a small change of the input, searched for by gradient, brings back in the edited file."""

    radius: Number = Field(description="largest change of a value, in standard deviations of the inputs")
    examples: int = Field(ge=0, description="flagged examples whose label the edit took away, and as many others")
    flagged: Rate = Field(description="share of these whose label comes back")
    control: Rate = Field(description="the same search for the same labels, from reference examples of that class")


class RandomEdit(Plain):
    """As many random parts of the same layers taken out instead, in the same way, on average over draws."""

    draws: int = Field(ge=1)
    kind: str = Field(default="unit", description="what was drawn, in words: unit, component, layer group, direction")
    units: int = Field(ge=1, description="how many are taken out")
    used: Rate = Field(description="flagged labels still predicted, of the examples the edit was made with")
    reference: Rate


class StepsAlone(Plain):
    """The original after training steps on clean examples of the whole network, without an edit."""

    steps: int = Field(ge=1)
    scores: ErasureScores


class NoisePoint(Plain):
    """Flagged labels predicted with Gaussian noise on the input, before and after the edit."""

    sigma: Number = Field(description="standard deviation of the noise, in standard deviations of the pixels")
    before: Rate
    after: Rate


class Erasure(Plain):
    """An edited copy of the checkpoint that suppresses flagged labels, measured again from disk."""

    method: str = Field(description="units, curvature, head, relearn, or what a later version knows")
    done: str = Field(default="", description="what was done, in words")
    used_by: str = Field(default="", description="what the examples are that it was made or chosen with, in words")
    file: str
    sha256: str
    source_sha256: str = Field(description="of the original, which stays as it is")
    examples: list[ErasedExample] = []
    units: list[UnitRef] = []
    layers: list[EditedLayer] = []
    clean_steps: int = Field(default=0, ge=0, description="steps of training on clean examples after the edit")
    candidates: list[TriedEdit] = []
    max_test_drop: Rate | None = Field(default=None, description="the accuracy that choosing the edit might cost")
    counts: dict[str, int] = Field(description="examples behind each figure")
    before: ErasureScores
    after: ErasureScores
    relearning: list[RelearnPoint] = []
    noise: list[NoisePoint] = []
    inputs: list[InputPoint] = []
    random: RandomEdit | None = Field(default=None, description="the control: as many random parts taken out instead")
    steps_alone: StepsAlone | None = Field(default=None, description="the control: clean steps without an edit")
    membership_before: Membership | None = Field(
        default=None, description="whether the original tells flagged from test examples (memaudit verify)"
    )
    membership: Membership | None = Field(default=None, description="the same of the edited file")
    notes: list[str] = []
