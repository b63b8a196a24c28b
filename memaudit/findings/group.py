"""The flagged set as a whole: shared units, the trade-off, matched controls, known units, the summary."""

from pydantic import Field

from memaudit.findings.base import Kind, Number, Plain, Rate, Share
from memaudit.findings.finding import Outcome


class Neuron(Plain):
    """A unit whose ablation, alone or in its finding's set, suppresses memorized examples."""

    layer: str
    index: int = Field(ge=0)
    kind: Kind
    erases: list[str] = Field(description="ids of the findings whose set holds this unit, most shared units first")
    reference_accuracy_after: Rate | None = Field(description="reference accuracy with this unit alone ablated")
    low: Rate | None = Field(default=None, description="95 % interval of `reference_accuracy_after`")
    high: Rate | None = None


class KnownUnits(Plain):
    """A network trained with example-tied dropout: what the audit found against the units made to memorize."""

    layers: list[str] = Field(description="tied layers whose units were searched")
    own: bool = Field(description="each flagged example ran with its own memorizing units, known by its integer id")
    units: int = Field(ge=0, description="memorizing units among those searched; per example, on average, where own")
    chance: Rate = Field(description="share of the live units that they are: what a random unit would be")
    held: int = Field(ge=0, description="fitted flagged labels that are lost when all memorizing units are dropped")
    recalled: int = Field(ge=0, description="of those, how many the audit suppresses by a cut with such a unit in it")
    recall: Rate | None
    recall_low: Rate | None = Field(default=None, description="95 % Wilson interval of `recall`")
    recall_high: Rate | None = None
    precision: Rate | None = Field(description="share of the units cut for those examples that are memorizing")
    flagged_dropped: Rate = Field(description="flagged labels predicted with all memorizing units dropped")
    true_label_dropped: Rate | None = Field(default=None, description="true labels predicted then, where known")
    reference_dropped: Rate = Field(description="reference accuracy with all memorizing units dropped")


class CurvePoint(Plain):
    """The trade-off with the `units` most shared units ablated together."""

    units: int = Field(ge=0)
    flagged_fitted: Rate
    reference_accuracy: Rate
    flagged_examples: int = Field(default=0, ge=0, description="fitted flagged examples that `flagged_fitted` is of")
    reference_examples: int = Field(default=0, ge=0, description="reference examples that the accuracy is of")


class MatchedControls(Plain):
    """The same search on clean examples of the same labels and similar margins."""

    examples: int = Field(default=0, ge=0)
    median_units: Number | None
    auc: Rate | None = Field(description="chance that a clean example needs more units than a flagged one")
    low: Rate | None
    high: Rate | None


class Stability(Plain):
    """The search again with its risk predicted on other reference examples: does it find the same units?"""

    seeds: list[int]
    examples: int = Field(ge=0)
    jaccard: Rate | None = Field(description="mean Jaccard index of an example's unit sets, this run's and a seed's")
    low: Rate | None
    high: Rate | None


class Groups(Plain):
    """The flagged set as a group."""

    curve: list[CurvePoint] = []
    overlap: Rate | None = Field(default=None, description="mean Jaccard index of the unit sets of two findings")
    matched_controls: MatchedControls | None = None
    stability: Stability | None = None


class Memorization(Plain):
    """How many of the list are memorized beyond chance, and how good the evidence is."""

    called: int = Field(ge=0, description="fitted examples that are called memorized")
    reached: int = Field(ge=0, description="fitted examples whose p-value is at most `level`")
    expected: Number = Field(ge=0, description="as many would be, were the whole list clean")
    beyond: Number = Field(ge=0, description="how many of `reached` are memorized beyond chance")
    beyond_low: int = Field(ge=0, description="95 % interval of `beyond`")
    beyond_high: int = Field(ge=0)
    chance: Rate = Field(description="p-value that the whole list is clean; above 0.05 nothing is called")
    level: Rate = 0.05
    calibration: int = Field(ge=0, description="clean examples, predicted as labelled, that p-values compare with")
    planted: int = Field(default=0, ge=0, description="wrong labels that a copy of the network was made to learn")
    power: Rate = Field(description="share of these that reach `level`")
    power_low: Rate
    power_high: Rate
    false_alarms: Rate = Field(description="share of clean, predicted examples that reach `level`")
    false_alarms_low: Rate
    false_alarms_high: Rate
    false_alarms_hard: Rate = Field(description="share of all clean examples that reach it, also those mispredicted")
    parts: list[str]
    true_label_known: int = Field(default=0, ge=0, description="examples whose true label is given")
    true_label_lost: int = Field(
        default=0, ge=0, description="of those, predicted as flagged although the true label is another"
    )


class Summary(Plain):
    """Counts and averages over the findings; every rate is derivable from `findings`."""

    flagged: int = Field(ge=0)
    fitted: int = Field(ge=0)
    memorized: int = Field(ge=0)
    outcomes: dict[Outcome, int]
    median_units: Number | None = Field(description="over localized and entangled findings")
    reference_retained: Rate | None = Field(description="mean over localized and entangled findings")
    random_erased: Rate | None = Field(description="share of random draws that suppress the label, over all findings")
    random_low: Rate | None = None
    random_high: Rate | None = None
    reference_retained_low: Rate | None = Field(default=None, description="95 % bootstrap interval over findings")
    reference_retained_high: Rate | None = None
    true_label_known: int = Field(default=0, ge=0, description="suppressed findings whose true label was given")
    true_label_back: Rate | None = Field(
        default=None, description="of those, the share predicted with it after the cut"
    )
    true_label_low: Rate | None = None
    true_label_high: Rate | None = None
    atypicality_auroc: Rate | None = Field(
        default=None, description="chance that a flagged example is less supported than a reference example"
    )
    memorization: Memorization | None = None
    estimate_auroc: Rate | None = Field(
        default=None, description="chance that a flagged example's estimate is above a clean example's"
    )
    learning_auroc: Rate | None = Field(
        default=None, description="chance that a fitted flagged example is learned later than a fitted reference one"
    )
    learning_flagged: int = Field(default=0, ge=0, description="fitted flagged examples that `learning_auroc` compares")
    learning_reference: int = Field(default=0, ge=0, description="fitted reference examples it compares them with")

    @property
    def score_auroc(self) -> float | None:
        """That of the score which decides `memorized`: the estimate, in reports that have none the neighbours."""
        return self.atypicality_auroc if self.estimate_auroc is None else self.estimate_auroc


class Slice(Plain):
    """The findings that have one thing in common."""

    by: str = Field(description="label, confidence or a column of the flagged manifest")
    value: str
    count: int = Field(ge=1)
    fitted: Share
    memorized: Share
    localized: Share = Field(description="memorized or not")
    gap: Number = Field(description="share memorized, minus that of the flagged examples outside of the slice")
    small: bool = Field(description="too few examples for its shares to be told from the others'")
