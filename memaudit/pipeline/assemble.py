"""From what an audit measured to the report: names, counts and averages, nothing measured here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.audits.atypicality import Support
from memaudit.audits.context import Context
from memaudit.audits.localize.flagged_set import ERASED
from memaudit.data import ExampleSet, finding_id
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.loop import BACKWARD
from memaudit.findings import (
    DataInfo,
    DataSource,
    Effort,
    Finding,
    Groups,
    LayerEvidence,
    LayerUnits,
    Memorization,
    Neuron,
    Outcome,
    Prediction,
    ReportWarning,
    Summary,
    ToolInfo,
    Units,
)
from memaudit.intervals import bootstrap, wilson
from memaudit.network.units import Site, UnitSpace
from memaudit.numbers import tidy
from memaudit.pipeline.about import config_of, environment, model_info, volatile
from memaudit.pipeline.labelwise import label_accuracies, macro
from memaudit.pipeline.prepare import Observed
from memaudit.pipeline.slices import slices
from memaudit.report.document import Report
from memaudit.settings import Provenance, Settings
from memaudit.version import __version__

# Stages of the localization, by what they serve.
SEARCHING = ("population", "localize")
VERIFYING = ("panel", "verify", "neurons", "trade-off", "matched clean", "stability")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that an audit measured, beside its findings.

    Attributes:
        whole: what audits found of the report as a whole: `neurons`, `groups`, `known_units`, `series`, `lateness`.
        incomplete: reasons why the audit did not see all of what it was given.
        started: seconds since the epoch.
    """

    observed: Observed
    provenance: Provenance
    test: ExampleSet | None = None
    test_accuracy: float | None = None
    class_names: Sequence[str] = ()
    layers: list[LayerEvidence] = field(default_factory=list)
    whole: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[ReportWarning] = ()
    incomplete: Sequence[str] = ()
    started: float

    @property
    def context(self) -> Context:
        """What the audits were given."""
        return self.observed.context


def assemble(evidence: Measured, findings: Sequence[Finding]) -> Report:
    """The report; its findings stand in the order of the flagged set, whatever order they were found in."""
    place = {(e.id, e.label): n for n, e in enumerate(evidence.context.flagged.examples)}
    ordered = sorted(findings, key=lambda f: place[f.example.id, f.example.label])
    gate = evidence.context.settings.policy.judge(ordered, evidence.observed.accuracy)
    incomplete = [ReportWarning(code="MEM001", message=reason) for reason in evidence.incomplete]
    evaluator, whole = evidence.context.evaluator, evidence.whole
    return Report(
        status="incomplete" if incomplete else "complete",
        verdict="fail" if gate.failed or incomplete else "pass",
        tool=ToolInfo(version=__version__),
        command=evidence.provenance.command,
        inputs=dict(evidence.provenance.inputs),
        by=evidence.provenance.by,
        config=dict(evidence.provenance.config) or config_of(evidence.context.settings),
        environment=environment(evaluator.device),
        volatile=volatile(evaluator, evidence.started),
        passes=dict(sorted(evaluator.passes.items())),
        effort=_effort(evaluator.passes),
        model=model_info(evaluator.adapter, evidence.provenance, evidence.observed.context.flagged_logits.shape[1]),
        data=_data(evidence),
        units=_units(evidence.context.space, evidence.context.live),
        summary=_summary(ordered, evidence),
        findings=ordered,
        neurons=whole.get("neurons", []),
        groups=whole.get("groups", Groups()),
        slices=slices(ordered, evidence.class_names),
        known_units=whole.get("known_units"),
        counterfactuals=whole.get("counterfactuals"),
        series=whole.get("series", []),
        layers=evidence.layers,
        warnings=[*incomplete, *evidence.warnings, *whole.get("warnings", [])],
        gate=gate,
    )


def skeleton(
    adapter: Adapter,
    settings: Settings,
    provenance: Provenance,
    flagged: ExampleSet,
    reference: ExampleSet,
    class_names: Sequence[str],
) -> Report:
    """A report with every name of the real one (examples, labels, layers) and no figure.

    It can be rendered before anything long begins: a name that a renderer trips over must not cost a night.
    """
    sites = tuple(Site(name, "channel", 1) for name, _ in adapter.module.named_modules() if name)
    space = UnitSpace(sites)
    classes = adapter.num_classes or int(max(flagged.labels.max(), reference.labels.max())) + 1

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape)

    context = Context(
        evaluator=Evaluator(adapter),
        settings=settings,
        flagged=flagged,
        reference=reference,
        flagged_logits=zeros(len(flagged), classes),
        reference_logits=zeros(len(reference), classes),
        space=space,
        live=torch.ones(space.total, dtype=torch.bool),
        candidates=torch.ones(space.total, dtype=torch.bool),
    )
    n = len(flagged)
    support = Support(zeros(n), zeros(n), zeros(n, 0), zeros(n, 0))
    neurons = [Neuron(layer=s.layer, index=0, kind=s.kind, erases=[], reference_accuracy_after=None) for s in sites]
    nothing = Measured(
        observed=Observed(context, support, zeros(1), 0.0, (), ()),
        provenance=provenance,
        class_names=class_names,
        whole={"neurons": neurons},
        warnings=provenance.warnings,
        incomplete=["nothing is measured yet"],
        started=time.time(),
    )
    findings = [
        Finding(
            id=finding_id(example.id, example.label),
            example=example,
            outcome=Outcome.NOT_FITTED,
            fitted=False,
            memorized=False,
            atypicality=None,
            before=Prediction(prediction=example.label, margin=0.0, confidence=0.0),
        )
        for example in flagged.examples
    ]
    return assemble(nothing, findings)


def _effort(passes: Mapping[str, int]) -> Effort | None:
    def cost(stages: Sequence[str]) -> float:
        return sum(passes.get(f"{s} forward", 0) + BACKWARD * passes.get(f"{s} backward", 0) for s in stages)

    search, verification = cost(SEARCHING), cost(VERIFYING)
    return Effort(search=search, verification=verification, ratio=tidy(verification / search)) if search else None


def _data(evidence: Measured) -> DataInfo:
    def source(examples: ExampleSet, accuracy: float | None) -> DataSource:
        rate = None if accuracy is None else tidy(accuracy)
        low, high = (None, None) if rate is None else map(tidy, wilson(rate * len(examples), len(examples)))
        return DataSource(
            source=examples.source,
            count=len(examples),
            sha256=examples.sha256,
            drawn_from=examples.drawn_from,
            accuracy=rate,
            low=low,
            high=high,
        )

    context = evidence.context
    reference = source(context.reference, evidence.observed.accuracy)
    if context.evaluator.adapter.multi_label:
        labels = label_accuracies(context.reference_margins, context.reference.labels, evidence.class_names)
        reference = reference.model_copy(update={"by_label": labels, "macro": macro(labels)})
    return DataInfo(
        flagged=source(context.flagged, len(context.fitted) / len(context.flagged)),
        reference=reference,
        test=None if evidence.test is None else source(evidence.test, evidence.test_accuracy),
        class_names=list(evidence.class_names),
        class_order=evidence.provenance.class_order,
    )


def _units(space: UnitSpace, live: Tensor) -> Units:
    layers = [
        LayerUnits(layer=site.layer, kind=site.kind, width=site.width, dead=int((~alive).sum()))
        for site, alive in zip(space.sites, space.split(live), strict=True)
    ]
    return Units(total=space.total, dead=int((~live).sum()), by_layer=layers)


def _summary(findings: Sequence[Finding], evidence: Measured) -> Summary:
    calibration, seed = evidence.observed.calibration, evidence.context.seed
    erased = [f for f in findings if f.outcome in ERASED]
    kept = [
        f.reference_accuracy.retained
        for f in erased
        if f.reference_accuracy and f.reference_accuracy.retained is not None
    ]
    kept_low, kept_high = bootstrap(kept, seed)
    random = [f.controls.random for f in findings if f.controls]
    draws, hits = sum(r.draws for r in random), sum(r.erased for r in random)
    low, high = wilson(hits, draws)
    scores = torch.tensor([f.atypicality.score for f in findings if f.atypicality])
    known = [f for f in erased if f.example.true_label is not None and f.after]
    back = sum(f.after is not None and f.after.prediction == f.example.true_label for f in known)
    back_low, back_high = wilson(back, len(known))
    lateness = evidence.whole.get("lateness")
    estimates = torch.tensor([f.estimate.score for f in findings if f.estimate and f.fitted])
    clean: Tensor | None = evidence.whole.get("estimates")
    late = torch.tensor([f.learning.score for f in findings if f.learning and f.fitted])
    return Summary(
        flagged=len(findings),
        fitted=sum(f.fitted for f in findings),
        memorized=sum(f.memorized for f in findings),
        outcomes={o: sum(f.outcome is o for f in findings) for o in Outcome},
        median_units=float(median(len(f.units) for f in erased)) if erased else None,
        reference_retained=tidy(sum(kept) / len(kept)) if kept else None,
        reference_retained_low=tidy(kept_low) if kept else None,
        reference_retained_high=tidy(kept_high) if kept else None,
        random_erased=tidy(hits / draws) if draws else None,
        random_low=tidy(low) if draws else None,
        random_high=tidy(high) if draws else None,
        true_label_known=len(known),
        true_label_back=tidy(back / len(known)) if known else None,
        true_label_low=tidy(back_low) if known else None,
        true_label_high=tidy(back_high) if known else None,
        atypicality_auroc=tidy(auroc(scores, calibration)) if len(scores) else None,
        memorization=_memorization(findings, evidence.whole.get("memorization")),
        estimate_auroc=tidy(auroc(estimates, clean)) if clean is not None and len(estimates) else None,
        learning_auroc=tidy(auroc(late, lateness)) if lateness is not None and len(late) else None,
        learning_flagged=len(late),
        learning_reference=0 if lateness is None else len(lateness),
    )


def _memorization(findings: Sequence[Finding], found: Memorization | None) -> Memorization | None:
    """With the count that needs no estimate: wrong labels, known as such, that the model gives all the same."""
    known = [f for f in findings if f.example.true_label is not None]
    lost = sum(f.fitted and f.example.true_label != f.example.label for f in known)
    return None if found is None else found.model_copy(update={"true_label_known": len(known), "true_label_lost": lost})


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive scores above a negative, ties counting half; equal within float rounding is a tie."""
    below = negative.double().sort().values
    beaten = torch.searchsorted(below, positive.double() - 1e-6)
    reached = torch.searchsorted(below, positive.double() + 1e-6, right=True)
    return float((beaten + reached).double().mean()) / (2 * len(below))
