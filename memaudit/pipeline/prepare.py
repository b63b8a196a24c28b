"""Before any audit: premises, sites, and one observing pass over each set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from memaudit.audits.atypicality import (
    Neighbours,
    Observation,
    Support,
    leave_one_out,
    live_units,
    observe,
    observe_flagged,
    sampled,
)
from memaudit.audits.context import Context, stage
from memaudit.audits.memorization.power import other_labels
from memaudit.data import ExampleSet
from memaudit.engine.answers import Answers, margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.journal import Journal
from memaudit.engine.threads import settle_threads
from memaudit.errors import Incomplete
from memaudit.findings import Neighbour, ReportWarning
from memaudit.network.states import State
from memaudit.network.units import UnitSpace, select
from memaudit.numbers import tidy
from memaudit.pipeline.admit import Admitted
from memaudit.pipeline.labelwise import check_labelwise
from memaudit.pipeline.premises import check_accuracy, check_labels, check_network, uncuttable
from memaudit.settings import Progress, Settings


@dataclass(frozen=True)
class Observed:
    """What is known of the examples before any audit runs.

    Attributes:
        context: what the audits get; its sets hold only examples with finite logits.
        supports: how far neighbours support each flagged label.
        calibration: `(n,)` leave-one-out atypicality of reference examples.
        accuracy: of the intact model on the reference.
        incomplete: why the audit does not see all of what it was given.
    """

    context: Context
    supports: Support
    calibration: Tensor
    accuracy: float
    warnings: tuple[ReportWarning, ...]
    incomplete: tuple[str, ...]

    def nearest(self, row: int) -> list[Neighbour]:
        """The reference examples that flagged example `row` was compared with, nearest first."""
        rows, similarities = self.supports.nearest[row].tolist(), self.supports.similarity[row].tolist()
        near = [self.context.reference.examples[at] for at in rows]
        return [
            Neighbour(**{name: getattr(example, name) for name in _SHARED}, similarity=tidy(similarity))
            for example, similarity in zip(near, similarities, strict=True)
            if isfinite(similarity)  # fewer than three were asked the same question
        ]


# What a neighbour says of itself as any example does.
_SHARED = ("id", "source", "index", "label", "declared_id")


def prepare(
    evaluator: Evaluator,
    admitted: Admitted,
    settings: Settings,
    *,
    class_names: tuple[str, ...] = (),
    states: Sequence[State] = (),
    journal: Journal | None = None,
    progress: Progress,
    deadline: float,
) -> Observed:
    """Check what every figure rests on, then look at every example once.

    Raises:
        PremiseBroken, ModelRejected, DataRejected, Incomplete: the audit cannot be made.
    """
    flagged, reference = admitted.flagged, admitted.reference
    with stage(evaluator, progress, "check"):
        check_network(evaluator, reference)
        space = _space(evaluator, reference, settings)
        chosen = settle_threads(evaluator, reference, settings.threads)
    evaluator.resume(journal)  # this process has shown that the premises hold; now measurements begin
    progress.stage(chosen)
    with stage(evaluator, progress, "reference", len(reference) + len(flagged), intact=True):
        seen = _see(evaluator, flagged, reference, space)
        incomplete = list(admitted.incomplete)
        sound = [_sound(s, n, o, incomplete) for s, n, o in zip((flagged, reference), SETS, seen[:2], strict=True)]
        if sound[0] is not flagged or sound[1] is not reference:
            flagged, reference = sound
            seen = _see(evaluator, flagged, reference, space)  # NaN would stay in the statistics
    flagged_seen, reference_seen, supports, calibration = seen
    warnings = check_labels(flagged, reference, flagged_seen.logits.shape[1])
    reference_margins = margin(reference_seen.logits, reference.labels)
    names = class_names or reference.class_names
    paired = evaluator.adapter.multi_label
    if paired:
        warnings += check_labelwise(reference_margins, reference.labels, names)
    else:
        fitted = predicted(margin(flagged_seen.logits, flagged.labels))
        accepted = settings.policy.min_reference_accuracy is not None
        said = Answers.of(reference_seen.logits, reference.labels)
        warnings += check_accuracy(said, reference.labels, names, fitted, accepted)
    context = Context(
        evaluator=evaluator,
        settings=settings,
        flagged=flagged,
        reference=reference,
        flagged_logits=flagged_seen.logits,
        reference_logits=reference_seen.logits,
        space=space,
        live=live_units(space, reference_seen),
        candidates=live_units(space, reference_seen, flagged_seen),
        fill=reference_seen.means if settings.ablation == "mean" else None,
        states=[state.to(evaluator.device) for state in states],
        progress=progress,
        deadline=deadline,
        neighbours=_neighbours(reference, reference_seen, supports, calibration, settings.seed, paired),
    )
    accuracy = float(predicted(reference_margins).float().mean())
    return Observed(context, supports, calibration, accuracy, tuple(warnings), tuple(incomplete))


def _neighbours(
    reference: ExampleSet, seen: Observation, supports: Support, calibration: Tensor, seed: int, paired: bool
) -> Neighbours:
    """What neighbours say, also of the labels that the network gives the reference, and of others that are drawn."""
    drawn = other_labels(reference.labels, seen.logits.shape[1], generator_for(seed, "other labels", ""), paired)
    sample = sampled(len(reference))
    said = torch.where(predicted(margin(seen.logits, reference.labels)), reference.labels, seen.logits.argmax(1))
    given, changed = (leave_one_out(seen.features, reference.labels, paired, asked) for asked in (said, drawn))
    return Neighbours(supports, sample, calibration, given, drawn[sample], changed)


SETS = ("flagged", "reference")


def _space(evaluator: Evaluator, reference: ExampleSet, settings: Settings) -> UnitSpace:
    """The units that the settings ask for.

    Raises:
        PremiseBroken: there is none.
    """
    adapter = evaluator.adapter
    sites = adapter.sites(reference.batch(_sound_rows(evaluator, reference, 3), evaluator.device))
    if not sites:
        raise uncuttable(adapter.architecture)
    return select(sites, settings.unit, settings.layers)


def _sound_rows(evaluator: Evaluator, reference: ExampleSet, count: int) -> list[int]:
    """The first reference rows with finite logits, of a few; NaN would look like a layer that cannot be cut."""
    few = list(range(min(8, len(reference))))
    finite = torch.isfinite(evaluator.logits(reference, few)).all(1).tolist()
    sound = [row for row in few if finite[row]]
    return (sound if len(sound) > 1 else few)[:count]


def _see(
    evaluator: Evaluator, flagged: ExampleSet, reference: ExampleSet, space: UnitSpace
) -> tuple[Observation, Observation, Support, Tensor]:
    """One observing pass over each set."""
    reference_seen = observe(evaluator, reference, space)
    flagged_seen, supports, calibration = observe_flagged(evaluator, flagged, space, reference_seen, reference.labels)
    return flagged_seen, reference_seen, supports, calibration


def _sound(examples: ExampleSet, name: str, seen: Observation, incomplete: list[str]) -> ExampleSet:
    """The examples whose logits are finite; the audit is incomplete where some are not.

    Raises:
        Incomplete: too few are left.
    """
    finite = torch.isfinite(seen.logits).all(1)
    if bool(finite.all()):
        return examples
    lost = int((~finite).sum())
    incomplete.append(f"{lost} {name} examples gave logits that are not finite")
    if int(finite.sum()) < (2 if name == "reference" else 1):
        raise Incomplete(f"the logits of {lost} of {len(examples)} {name} examples are NaN or infinite")
    return examples.subset(finite.nonzero().flatten().tolist())
