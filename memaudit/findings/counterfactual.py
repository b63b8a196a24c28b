"""What models that were trained without an example say of it, beside the one that was trained with it."""

from enum import StrEnum

from pydantic import Field

from memaudit.findings.base import Number, Plain, Rate, Share
from memaudit.findings.membership import OtherModel


class Held(StrEnum):
    """What the label rests on."""

    MEMORIZED = "memorized"  # right only with the example: most models trained without it give another answer
    LEARNED = "learned"  # right also without it
    NOT_FITTED = "not_fitted"  # not right although the model was trained with it


class Counterfactual(Plain):
    """One flagged example, asked of models that never saw it."""

    held: Held
    models: int = Field(ge=1, description="models trained without it")
    right: int = Field(ge=0, description="of these, how many predict the label")
    answer: int = Field(ge=0, description="the class they predict: the largest mean probability")
    probability: Rate = Field(description="of the label, by the audited model, averaged over shifted views of an image")
    probability_without: Rate = Field(description="the same by the models without it, on average")
    margin: Number = Field(description="logit margin of the label by the audited model")
    margin_without: Number
    support_without: Number | None = Field(
        default=None,
        description="the margin by the models without it, averaged over moved, mirrored and zoomed views of an image: "
        "the lowest are wrong labels, or of examples unlike all others",
    )
    difference: Number = Field(description="`probability` less `probability_without`: Feldman and Zhang's estimate")
    low: Number | None = Field(default=None, description="95 % interval over the models without it; null with one")
    high: Number | None = None
    ablated: bool | None = Field(default=None, description="cutting the finding's units gives `answer`; null: none cut")
    random_draws: int = Field(default=0, ge=0, description="draws of as many random units of the same layers")
    random_agrees: int = Field(default=0, ge=0, description="of these, how many give `answer`")


class Brought(Plain):
    """Whether cutting the units brings back what a model gives that never saw the example."""

    examples: int = Field(ge=0, description="findings with units whose label the models without it do not give")
    ours: Share = Field(description="of these, cutting their units gives the answer of the models without them")
    random: Share = Field(description="the same, of all draws of as many random units")
    correlation: Number | None = Field(description="of the label's margin, cut and without the example")
    correlation_low: Number | None = None
    correlation_high: Number | None = None
    random_correlation: Number | None = Field(default=None, description="the same with random units, mean over draws")


class Counterfactuals(Plain):
    """All flagged examples, beside models that never saw them."""

    models: list[OtherModel]
    memorized: Share
    learned: Share
    not_fitted: Share
    difference: Number = Field(description="mean over the flagged examples")
    low: Number = Field(description="95 % bootstrap interval over examples")
    high: Number
    estimate: Number | None = Field(default=None, description="correlation of the audit's own estimate with it")
    estimate_low: Number | None = None
    estimate_high: Number | None = None
    brought: Brought | None = None
