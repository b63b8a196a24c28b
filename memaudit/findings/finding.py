"""One flagged example: what the model says of it, in which units it sits, and what was measured beside it."""

from enum import StrEnum

from pydantic import Field

from memaudit.findings.base import Number, Plain, Prediction, Rate, UnitRef
from memaudit.findings.counterfactual import Counterfactual
from memaudit.findings.example import Example


class Outcome(StrEnum):
    """What became of one flagged example."""

    NOT_FITTED = "not_fitted"  # the model does not predict the flagged label: nothing to suppress
    LOCALIZED = "localized"  # at most K units suppress it, the reference survives, random units do not do the same
    ENTANGLED = "entangled"  # suppressed, but the reference falls below its budget or random units do it too
    DIFFUSE = "diffuse"  # not suppressed within K units
    NOT_SEARCHED = "not_searched"  # fitted, and localization was not asked for


class Atypicality(Plain):
    """How little the nearest reference neighbours, in the model's own features, support the label."""

    score: Rate = Field(description="1 - share of supporting neighbours, averaged over layers")
    p_value: Rate = Field(description="share of reference examples (leave-one-out) at least as unsupported")


class Neighbour(Plain):
    """A reference example that the model's features put nearest to a flagged one: what atypicality rests on."""

    id: str = Field(description="hash of the reference example's content")
    source: str
    index: int = Field(ge=0, description="row in its source, from 0")
    label: int = Field(ge=0)
    declared_id: str | None = None
    similarity: Number = Field(description="cosine of the features, averaged over the layers that vote")


class Learning(Plain):
    """When along the checkpoint series the label came to be predicted."""

    score: Rate = Field(description="1 - confidence in the label, averaged over the checkpoints: late is near 1")
    p_value: Rate = Field(description="share of fitted reference examples learned at least as late")
    learned: str | None = Field(description="checkpoint from which on the label is always predicted; null: never")
    confidence: list[Rate] = Field(description="softmax probability of the label at each checkpoint of the series")


class EstimatePart(Plain):
    """One kind of evidence that the example is memorized."""

    name: str = Field(description="what was asked: neighbours, relearned, along training, ...")
    score: Rate = Field(description="1 - support for the label by what does not know it: near 1 is memorized")
    p_value: Rate = Field(description="chance that a clean example scores as high")


class Estimate(Plain):
    """How much the example is memorized: what the model says less what is said without knowing the label."""

    score: Rate = Field(description="the parts joined; near 1: the label is held by this example alone")
    p_value: Rate = Field(description="chance that a clean, fitted example scores as high")
    q_value: Rate | None = Field(default=None, description="p_value adjusted over the list (Benjamini-Hochberg)")
    parts: list[EstimatePart] = []


class Sampled(Plain):
    """Reference examples measured before and after a cut."""

    rows: int = Field(default=0, ge=0)
    right: int = Field(default=0, ge=0, description="of these, right before")
    lost: int = Field(default=0, ge=0, description="right before, wrong after")
    gained: int = Field(default=0, ge=0, description="wrong before, right after")
    of: int = Field(default=0, ge=0, description="reference examples that these were drawn from, and stand for")
    of_right: int = Field(default=0, ge=0, description="of those, right before")


class ReferenceAccuracy(Plain):
    """Reference accuracy with the intact model and with the finding's units ablated."""

    before: Rate
    after: Rate
    low: Rate = Field(description="lower end of the 95 % interval of `after`")
    high: Rate
    retained: Rate | None = Field(
        default=None, description="of the reference examples right before, the share right after"
    )
    examples: int = Field(default=0, ge=0, description="reference examples that `after` was measured on")
    panel: int = Field(default=0, ge=0, description="reference examples those stand for")
    at_risk: Sampled = Field(default=Sampled(), description="of those that first-order effects say will change")
    near: Sampled = Field(default=Sampled(), description="of those that come nearest to it")
    at_random: Sampled = Field(default=Sampled(), description="of the others")


class RandomControl(Plain):
    """The same number of random live units of the same layers, instead of the finding's."""

    draws: int = Field(ge=0)
    erased: int = Field(ge=0)
    low: Rate | None = None
    high: Rate | None = None


class AugmentedControl(Plain):
    """Copies of the example the search never saw (flips, shifts): fitted before the cut, suppressed after it."""

    copies: int = Field(ge=0, description="copies that were fitted before the cut")
    erased: int = Field(ge=0)


class FlaggedOthersControl(Plain):
    """The other fitted flagged examples: how many the same cut takes with it."""

    examples: int = Field(ge=0)
    lost: int = Field(ge=0)


class Controls(Plain):
    """What else was measured with the same cut, so that the claim can be defended."""

    random: RandomControl
    augmented: AugmentedControl | None = None
    flagged_others: FlaggedOthersControl | None = None


class Finding(Plain):
    """One flagged example: was it memorized, where does it sit, what would suppressing it cost."""

    id: str = Field(description="hash of example content and label")
    example: Example
    outcome: Outcome
    fitted: bool
    memorized: bool = Field(description="fitted and atypical")
    atypicality: Atypicality | None
    nearest: list[Neighbour] = Field(default=[], description="the three nearest reference examples, nearest first")
    learning: Learning | None = Field(default=None, description="a second view of atypicality, with a series")
    estimate: Estimate | None = Field(default=None, description="what `memorized` is decided by")
    counterfactual: Counterfactual | None = Field(default=None, description="what models without the example say")
    before: Prediction
    after: Prediction | None = None
    units: list[UnitRef] = Field(default=[], description="in the order they were cut")
    reference_accuracy: ReferenceAccuracy | None = None
    controls: Controls | None = None
