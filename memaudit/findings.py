"""The report as plain data: what an audit found, in the shapes of `report.json`. No torch here.

Every model forbids unknown keys and non-finite numbers; a figure that could not be computed is `None` and a
warning says why. The keys are a contract: add, never rename, and raise `SCHEMA_VERSION` with a line below.
Annotations are not postponed here: pydantic would compile each one again at every start.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

# 1: first version.
SCHEMA_VERSION = 1

Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Kind = Literal["channel", "neuron", "head"]


_GIVEN: set[str] = set()


class Plain(BaseModel):
    """Base of every part of a report: strict about keys, frozen, finite."""

    # Validators are built on first use: the torch-free commands start in a blink, and most use a few parts only.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    def model_post_init(self, _: Any) -> None:
        # Which fields were given is asked nowhere, and one such set for each part is half of a large report's memory.
        object.__setattr__(self, "__pydantic_fields_set__", _GIVEN)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied.model_post_init(None)
        return copied


Part = TypeVar("Part", bound=Plain)


def interned(part: Part) -> Part:
    """`part`, or an equal one seen before: thousands of findings repeat the same small counts."""
    return cast(Part, _seen(part))


@lru_cache(maxsize=4096)
def _seen(part: Plain) -> Plain:
    return part


class Outcome(StrEnum):
    """What became of one flagged example."""

    NOT_FITTED = "not_fitted"  # the model does not predict the flagged label: nothing to erase
    LOCALIZED = "localized"  # at most K units erase it, the reference survives, random units do not do the same
    ENTANGLED = "entangled"  # erased, but the reference falls below its budget or random units do it too
    DIFFUSE = "diffuse"  # not erased within K units
    NOT_SEARCHED = "not_searched"  # fitted, and localization was not asked for


class Example(Plain):
    """A flagged example and where it came from."""

    id: str = Field(description="hash of the example's content: survives retraining, renaming and reordering")
    source: str = Field(description="path relative to the data set's root, or 'array'")
    label: int = Field(ge=0, description="the label it was trained with: an index into the model's classes")
    index: int = Field(ge=0, description="row in its source, from 0")
    line: int | None = Field(default=None, ge=1, description="line of the manifest that flagged it")
    true_label: int | None = Field(default=None, ge=0)
    note: str | None = None


class Atypicality(Plain):
    """How little the nearest reference neighbours, in the model's own features, support the label."""

    score: Rate = Field(description="1 - share of supporting neighbours, averaged over layers")
    p_value: Rate = Field(description="share of reference examples (leave-one-out) at least as unsupported")


class Learning(Plain):
    """When along the checkpoint series the label came to be predicted."""

    score: Rate = Field(description="1 - confidence in the label, averaged over the checkpoints: late is near 1")
    p_value: Rate = Field(description="share of reference examples learned at least as late")
    learned: str | None = Field(description="checkpoint from which on the label is always predicted; null: never")
    confidence: list[Rate] = Field(description="softmax probability of the label at each checkpoint of the series")


class Prediction(Plain):
    """What the model says of one example."""

    prediction: int = Field(ge=0)
    margin: Number = Field(description="logit of the flagged label minus the largest other logit; > 0 means fitted")
    confidence: Rate = Field(description="softmax probability of the flagged label")


class UnitRef(Plain):
    """One channel, neuron or attention head."""

    layer: str = Field(description="module path whose output (heads: input) carries the unit")
    index: int = Field(ge=0)
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


class Sampled(Plain):
    """Reference examples measured before and after a cut."""

    rows: int = Field(default=0, ge=0)
    right: int = Field(default=0, ge=0, description="of these, right before")
    lost: int = Field(default=0, ge=0, description="right before, wrong after")
    gained: int = Field(default=0, ge=0, description="wrong before, right after")


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
    at_risk: Sampled = Field(default=Sampled(), description="those nearest to changing, measured one and all")
    at_random: Sampled = Field(default=Sampled(), description="drawn from the others")


class RandomControl(Plain):
    """The same number of random live units of the same layers, instead of the finding's."""

    draws: int = Field(ge=0)
    erased: int = Field(ge=0)
    low: Rate | None = None
    high: Rate | None = None


class AugmentedControl(Plain):
    """Copies of the example the search never saw (flips, shifts): fitted before the cut, erased after it."""

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
    """One flagged example: was it memorized, where does it sit, what would erasing it cost."""

    id: str = Field(description="hash of example content and label")
    example: Example
    outcome: Outcome
    fitted: bool
    memorized: bool = Field(description="fitted and atypical")
    atypicality: Atypicality | None
    learning: Learning | None = Field(default=None, description="a second view of atypicality, with a series")
    before: Prediction
    after: Prediction | None = None
    units: list[UnitRef] = Field(default=[], description="in the order they were cut")
    reference_accuracy: ReferenceAccuracy | None = None
    controls: Controls | None = None


class Neuron(Plain):
    """A unit whose ablation, alone or in its finding's set, erases memorized examples."""

    layer: str
    index: int = Field(ge=0)
    kind: Kind
    erases: list[str] = Field(description="ids of the findings whose set holds this unit, most shared units first")
    reference_accuracy_after: Rate | None = Field(description="reference accuracy with this unit alone ablated")


class LayerUnits(Plain):
    """One layer's units."""

    layer: str
    kind: Kind
    width: int = Field(ge=1)
    dead: int = Field(default=0, ge=0)


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


class ErasureScores(Plain):
    """What one file predicts, of flagged examples that the original fits and of clean ones."""

    used: Rate | None = Field(description="flagged labels predicted, of the examples the edit was made or chosen with")
    unused: Rate | None = Field(description="flagged labels predicted, of the examples the edit never saw")
    true_label: Rate | None = Field(description="true labels predicted, of the flagged examples that have one")
    reference: Rate
    test: Rate | None = Field(description="accuracy on test examples that chose nothing")
    by_class: list[Rate | None] = Field(description="accuracy by class, on the test examples, else on the reference")


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


class Candidate(Plain):
    """An edit that was tried, on examples that no final figure is measured on."""

    layers: list[str]
    curvature: Rate
    clean_steps: int = Field(default=0, ge=0, description="steps of training on clean examples that followed")
    flagged: Rate = Field(description="flagged labels predicted, of the examples used for choosing")
    validation: Rate = Field(description="accuracy on the validation examples")
    chosen: bool = False


class RelearnPoint(Plain):
    """Flagged labels predicted after so many steps of training the edited file."""

    steps: int = Field(ge=0)
    rest: Rate = Field(description="labels of examples not trained on, when other flagged examples were")
    control: Rate | None = Field(description="the same, when as many reference examples were trained on instead")


class NoisePoint(Plain):
    """Flagged labels predicted with Gaussian noise on the input, before and after the edit."""

    sigma: Number = Field(description="standard deviation of the noise, in standard deviations of the pixels")
    before: Rate
    after: Rate


class Erasure(Plain):
    """An edited copy of the checkpoint that suppresses flagged labels, measured again from disk."""

    method: Literal["units", "curvature"]
    file: str
    sha256: str
    source_sha256: str = Field(description="of the original, which stays as it is")
    examples: list[ErasedExample] = []
    units: list[UnitRef] = []
    layers: list[EditedLayer] = []
    clean_steps: int = Field(default=0, ge=0, description="steps of training on clean examples after the edit")
    candidates: list[Candidate] = []
    max_test_drop: Rate | None = Field(default=None, description="the accuracy that choosing the edit might cost")
    counts: dict[str, int] = Field(description="examples behind each figure")
    before: ErasureScores
    after: ErasureScores
    relearning: list[RelearnPoint] = []
    noise: list[NoisePoint] = []
    notes: list[str] = []


class ToolInfo(Plain):
    """Who wrote the report."""

    name: str = "memaudit"
    version: str


class ConfigValue(Plain):
    """One setting that shaped the numbers, and where its value came from."""

    value: str | int | float | bool | list[str] | None
    origin: str = Field(description="flag, environment, config, checkpoint, measured or default")


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


class DataSource(Plain):
    """One set of examples."""

    source: str
    count: int = Field(ge=0)
    sha256: str
    accuracy: Rate | None = None


class DataInfo(Plain):
    """The examples the audit saw."""

    flagged: DataSource
    reference: DataSource
    test: DataSource | None = None
    class_names: list[str]
    class_order: str


class CurvePoint(Plain):
    """The trade-off with the `units` most shared units ablated together."""

    units: int = Field(ge=0)
    flagged_fitted: Rate
    reference_accuracy: Rate


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


class Summary(Plain):
    """Counts and averages over the findings; every rate is derivable from `findings`."""

    flagged: int = Field(ge=0)
    fitted: int = Field(ge=0)
    memorized: int = Field(ge=0)
    outcomes: dict[Outcome, int]
    median_units: Number | None = Field(description="over localized and entangled findings")
    reference_retained: Rate | None = Field(description="mean over localized and entangled findings")
    random_erased: Rate | None = Field(description="share of random draws that erase, over all findings")
    random_low: Rate | None = None
    random_high: Rate | None = None
    reference_retained_low: Rate | None = Field(default=None, description="95 % bootstrap interval over findings")
    reference_retained_high: Rate | None = None
    true_label_known: int = Field(default=0, ge=0, description="erased findings whose true label was given")
    true_label_back: Rate | None = Field(
        default=None, description="of those, the share predicted with it after the cut"
    )
    true_label_low: Rate | None = None
    true_label_high: Rate | None = None
    atypicality_auroc: Rate | None = Field(
        default=None, description="chance that a flagged example is less supported than a reference example"
    )
    learning_auroc: Rate | None = Field(
        default=None, description="chance that a flagged example is learned later than a reference example"
    )


class Effort(Plain):
    """What the localization cost, in examples forwarded; a backward pass counts as one and a half."""

    search: Number = Field(description="the search, with the reference examples its risk is predicted on")
    verification: Number = Field(description="every control, the neurons' own costs, the curve, matched clean examples")
    ratio: Number | None = Field(description="verification over search")


class Report(Plain):
    """Everything one audit found. `report.json` is this model and nothing else."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "incomplete"]
    verdict: Literal["pass", "fail"]
    tool: ToolInfo
    command: str
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
    known_units: KnownUnits | None = Field(default=None, description="for networks with example-tied dropout")
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
        from memaudit import report

        return report.write(self, Path(path), thumbnails=thumbnails)

    def _repr_html_(self) -> str:
        """Notebooks show the report's own page, in a frame so that its style stays inside."""
        from memaudit import report

        return report.embed(self)
