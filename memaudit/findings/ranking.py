"""A training set ranked by how much a model memorized each example, in the shapes of `ranking.json`. No torch."""

from enum import StrEnum

from pydantic import Field

from memaudit.findings.base import Number, Plain, Prediction, Rate
from memaudit.findings.example import Example


class Standing(StrEnum):
    """What a label is to the model."""

    MEMORIZED = "memorized"  # predicted, and others do not support it: it is known by heart
    RESISTED = "resisted"  # not predicted, and others do not support it: probably wrong, and not memorized
    LEARNED = "learned"  # what the model says of the example without having seen its label
    UNDECIDED = "undecided"  # neither


class Similar(Plain):
    """An example near the one in question."""

    example: Example
    similarity: Number = Field(description="mean cosine of their features over layers")


class Ranked(Plain):
    """One example of the training set."""

    rank: int = Field(ge=1)
    id: str = Field(description="hash of example content and label: the id of its finding in a scan")
    example: Example
    standing: Standing
    before: Prediction = Field(description="what the model says of it")
    estimate: Rate = Field(
        description="memorization: 1 if the label is given, less its probability without the example"
    )
    p_value: Rate = Field(description="chance that an example with a fitting label is as unsupported")
    wrong: Rate = Field(description="probability that the label was replaced by another one")
    suggested_label: int = Field(ge=0, description="what the others say")
    support: Rate = Field(description="probability of the suggested label, without the example")
    parts: dict[str, Rate] = Field(description="by name: how little each kind of evidence supports the label")
    nearest: list[Similar] = Field(default=[], description="most similar examples whose labels are trusted")


class CutOff(Plain):
    """The first examples of the ranking."""

    top: int = Field(ge=1)
    estimate: Rate = Field(description="the least among them")
    wrong: Rate = Field(description="share of them to expect with a wrong label: the precision of the list")
    low: Rate
    high: Rate
    known_wrong: Rate | None = Field(default=None, description="share with another declared true label, where known")


class ClassRow(Plain):
    """The examples of one label."""

    label: int = Field(ge=0)
    examples: int = Field(ge=1)
    memorized: int = Field(ge=0)
    estimate: Rate = Field(description="mean")
    wrong: Rate = Field(description="expected share of wrong labels")


class ClassPair(Plain):
    """Examples with one label where the others say another."""

    given: int = Field(ge=0)
    suggested: int = Field(ge=0)
    examples: int = Field(ge=1)
    memorized: int = Field(ge=0)
    wrong: Number = Field(ge=0, description="expected number of wrong labels among them")


class Twins(Plain):
    """Near-duplicates with different labels: at least one of them is wrong, memorized or not."""

    first: Example
    second: Example
    distance: Number = Field(description="root mean square difference of pixels in [0, 1], on a coarse grid")


class Shares(Plain):
    """Shares of the whole set: labels predicted, predicted unseen, memorized, and wrong."""

    examples: int = Field(ge=1)
    fitted: Rate = Field(description="labels that the model predicts")
    unseen: Rate = Field(description="labels that it predicts where layers were learned again without them")
    memorized: Rate = Field(description="mean estimate: share of the fit that rests on having seen the example itself")
    memorized_low: Rate
    memorized_high: Rate
    wrong: Rate = Field(description="share of wrong labels")
    wrong_low: Rate
    wrong_high: Rate
    standings: dict[Standing, int]
    known: int = Field(default=0, ge=0, description="examples whose true label is declared")
    known_wrong: int = Field(default=0, ge=0, description="of these, labels that are not the true one")
    known_learned: int = Field(default=0, ge=0, description="of the wrong ones, what the model says unseen")
    auroc: Rate | None = Field(default=None, description="of the estimate, known wrong against known right labels")
