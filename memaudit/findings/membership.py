"""Whether a model still tells examples that it may have been trained on from those it never saw."""

from pydantic import Field

from memaudit.findings.base import Number, Plain, Prediction, Rate
from memaudit.findings.example import Example


class OtherModel(Plain):
    """A model that was trained without the flagged examples."""

    path: str
    sha256: str
    architecture: str | None
    accuracy: Rate = Field(description="on the reference")
    low: Rate = Field(description="95 % Wilson interval of `accuracy`")
    high: Rate


class Rule(Plain):
    """The rule "trained on, where the score is above a threshold", at one false-positive rate."""

    level: Rate = Field(description="false-positive rate that the threshold is set for, on the unseen examples")
    threshold: Number
    hits: int = Field(ge=0, description="flagged examples above the threshold")
    rate: Rate = Field(description="true-positive rate: `hits` of all flagged examples compared")
    low: Rate = Field(description="exact 95 % interval of `rate` (Clopper-Pearson)")
    high: Rate
    alarms: int = Field(ge=0, description="unseen examples above the threshold")
    alarms_high: Rate = Field(description="97.5 % upper bound of the false-positive rate, exact")
    resolved: bool = Field(description="there are enough unseen examples to set a threshold at this rate")
    detectable: Rate | None = Field(
        description="smallest true-positive rate that would show in 80 % of such audits; null: none would"
    )


class Attack(Plain):
    """One membership test on all examples compared."""

    name: str
    auc: Rate = Field(description="chance that a flagged example scores above an unseen one")
    auc_low: Rate = Field(description="95 % interval of `auc` (Newcombe)")
    auc_high: Rate
    advantage: Rate = Field(description="largest true- less false-positive rate")
    advantage_low: Rate
    advantage_high: Rate
    epsilon: Number = Field(ge=0, description="lower bound of epsilon, 95 % (Clopper-Pearson), at delta 1e-5")
    p_value: Rate = Field(description="by dealing membership anew within kinds, adjusted for all tests")
    rules: list[Rule]


class MembershipSlice(Plain):
    """The strongest test on examples that have one thing in common."""

    by: str = Field(description="label, or a column of the flagged manifest")
    value: str
    members: int = Field(ge=1, description="flagged examples")
    others: int = Field(ge=1, description="unseen examples they are compared with")
    auc: Rate
    auc_low: Rate
    auc_high: Rate
    hits: int = Field(ge=0, description="flagged examples above the threshold that 5 % of these unseen ones pass")
    rate: Rate
    low: Rate
    high: Rate
    small: bool = Field(description="too few examples to tell the slice from the others")


class Scored(Plain):
    """One flagged example in every test."""

    id: str = Field(description="hash of example content and label")
    example: Example
    before: Prediction = Field(description="what the model says of it")
    scores: dict[str, Number] = Field(description="by test; higher speaks for having been trained on")
    share: Rate = Field(description="of the unseen examples, the share that the strongest test scores as high")
    traced: bool = Field(description="above the strongest test's threshold at 5 % false positives")


class Membership(Plain):
    """What all tests say together."""

    members: int = Field(ge=1, description="flagged examples compared")
    others: int = Field(ge=1, description="unseen examples compared")
    left_out: int = Field(default=0, ge=0, description="flagged examples without an unseen one of their kind")
    undeclared: int = Field(default=0, ge=0, description="flagged examples whose true label nobody gave")
    relabelled: int = Field(
        default=0, ge=0, description="unseen examples asked for a wrong label, as flagged ones of their class were"
    )
    kinds: int = Field(ge=1, description="pairs of true and given label; only examples of one kind are compared")
    found: bool = Field(description="the model tells flagged from unseen examples: `p_value` is at most 0.05")
    p_value: Rate = Field(description="smallest of the adjusted ones: the chance of as much, had it seen none of them")
    p_below: Rate = Field(
        default=1.0, description="chance that some test ranks flagged examples as far below unseen ones like them"
    )
    unlike: bool = Field(
        default=False,
        description="`p_below` is at most 0.01, and nothing was found: flagged and unseen examples are not alike, or "
        "the model avoids the flagged labels; a trace cannot be told",
    )
    strongest: str = Field(description="the test with the smallest p-value")
    clear: int | None = Field(
        description="fewest flagged examples whose clear trace would be found in 80 % of such audits; null: none"
    )
    attacks: list[Attack]
    slices: list[MembershipSlice] = []
    examples: list[Scored] = []
