"""`memaudit.verify`: does a model still tell the flagged examples from others that it never saw?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.audits.membership.attacks import scaled
from memaudit.audits.membership.matching import Compared, compared, looks_mislabelled
from memaudit.audits.membership.measure import membership, scores_of
from memaudit.audits.memorization.estimating import weigh
from memaudit.data import ExampleSet, Preprocess, joined, remove_overlap
from memaudit.engine.answers import confidence, margin, predicted
from memaudit.engine.device import automatic_batch_size, exact_arithmetic, resolve_device
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.others import Other, viewed
from memaudit.engine.threads import threads_kept
from memaudit.errors import DataRejected, UsageError
from memaudit.findings import DataSource, Membership, ReportWarning, ToolInfo
from memaudit.gate.membership import MembershipPolicy
from memaudit.intervals import wilson
from memaudit.network.scoped import as_found
from memaudit.numbers import count, tidy
from memaudit.pipeline.about import config_of, environment, model_info, times
from memaudit.pipeline.admit import Admitted, admit
from memaudit.pipeline.library import as_given, examples_of, settings_for, wrap
from memaudit.pipeline.others import Said, asked
from memaudit.pipeline.prepare import Observed, prepare
from memaudit.report.verified import Verification
from memaudit.settings import Progress, Provenance, Settings, Silent
from memaudit.system.memory import keeping_freed
from memaudit.version import __version__

# Fewer unseen examples than this set no threshold worth the name.
FEW = 100
MISLABELLED = (
    "models without them do not give the labels of {} of {} flagged examples, and of {} of {} unseen ones, and no "
    "true_label says which flagged labels are wrong. Wrong labels alone would look like a trace, so the tests that "
    "compare with those models were left out. Give the column true_label."
)


class Verifier:
    """One verification of one loaded model.

    Args:
        adapter: the model; moved to the settings' device.
        flagged: the examples that should be gone, with the labels they had.
        reference: clean examples, for premises, for the population of RMIA and for the audit's own estimate.
        unseen: examples that the model was certainly not trained on, drawn as the flagged ones were.
        others: models trained without the flagged examples, each with the sets flagged, reference and unseen.
    """

    def __init__(
        self,
        adapter: Adapter,
        flagged: ExampleSet,
        reference: ExampleSet,
        unseen: ExampleSet,
        settings: Settings,
        *,
        others: Sequence[Other] = (),
        policy: MembershipPolicy | None = None,
        provenance: Provenance | None = None,
        class_names: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        if adapter.multi_label:
            raise UsageError(
                "the model's labels do not exclude each other: membership needs one label an example",
                hint="Audit examples that you name: memaudit scan --flagged",
            )
        self.adapter, self.settings, self.others = adapter, settings, others
        self.policy = policy or MembershipPolicy()
        self.provenance = provenance or Provenance(command="memaudit.verify(...)")
        self.progress: Progress = progress or Silent()
        self.admitted = admit(flagged, reference, settings.limit)
        self.warnings: list[ReportWarning] = [*self.provenance.warnings, *self.admitted.warnings]
        self.class_names = class_names or self.admitted.reference.class_names
        self.unseen, self.compared = self._comparable(unseen)
        self.started = time.time()

    def _comparable(self, unseen: ExampleSet) -> tuple[ExampleSet, Compared]:
        """What is really unseen, and which of it the flagged examples are compared with.

        Raises:
            DataRejected: no unseen example is like a flagged one.
        """
        flagged = self.admitted.flagged
        free, both = remove_overlap(unseen, flagged)
        if both:
            self._warn(f"{count(both, 'unseen example')} also flagged: no unseen ones, so they were left out")
        reference, shared = remove_overlap(self.admitted.reference, free)
        if shared and len(reference) >= 2:
            self._warn(f"{count(shared, 'reference example')} also unseen; they were left out of the reference")
            self.admitted = replace(self.admitted, reference=reference)
        found = compared(flagged, free, self.settings.seed)
        if not found.flagged:
            raise DataRejected(
                "no unseen example has the true class of a flagged one, so nothing can be compared",
                hint="Give --unseen examples of the flagged ones' classes; a few hundred or more show small effects.",
            )
        if found.left_out:
            self._warn(f"{count(found.left_out, 'flagged example')} left out: no unseen one of that class and label")
        if len(found.unseen) < FEW:
            few = f"only {count(len(found.unseen), 'unseen example')} to compare with: low false-positive rates cannot"
            self._warn(f"{few} be measured. Give {FEW} or more of the flagged classes with --unseen.")
        return free, found

    def _warn(self, message: str) -> None:
        self.warnings.append(ReportWarning(code="MEM130", message=message))

    def run(self) -> Verification:
        """The verification: every attack on the flagged against the unseen examples.

        Raises:
            MemauditError: a premise is broken, as for an audit.
        """
        device = resolve_device(self.settings.device)
        self.adapter.module.to(device)
        batch = self.settings.batch_size or automatic_batch_size(self.admitted.reference.batch([0]), device)
        evaluator = Evaluator(self.adapter, batch)
        with exact_arithmetic(), keeping_freed(), threads_kept():
            flagged = self.admitted.flagged.subset(self.compared.flagged)
            unseen = self.unseen.subset(self.compared.unseen).labelled(self.compared.labels)
            observed = prepare(
                evaluator,
                Admitted(joined(flagged, unseen), self.admitted.reference, (), self.admitted.incomplete),
                self.settings,
                class_names=self.class_names,
                progress=self.progress,
                deadline=float("inf"),
            )
            if observed.incomplete != self.admitted.incomplete:
                raise DataRejected(f"membership cannot be measured: {observed.incomplete[-1]}")
            said = None
            if self.others:
                self.progress.stage("ask the models without", len(self.others))
                parts = [("flagged", flagged), ("unseen", unseen)]
                said = asked(self.others, evaluator, parts, observed.context.reference)
            found = self._membership(evaluator, observed, said, flagged, unseen)
        return self._assembled(evaluator, observed, said, found)

    def _membership(
        self, evaluator: Evaluator, observed: Observed, said: Said | None, flagged: ExampleSet, unseen: ExampleSet
    ) -> Membership:
        context, logits = observed.context, observed.context.flagged_logits
        everyone, reference = context.flagged, context.reference
        estimate = confidence(logits, everyone.labels) + weigh(context).joint.scores - 1
        if said is not None:
            wrong = looks_mislabelled(flagged.examples, said.odds.mean(0) > 0)
            if wrong is not None:
                self._warn(MISLABELLED.format(wrong[0], len(flagged), wrong[1], len(unseen)))
                said = None
        seen: Tensor | None = None
        population = None
        if said is not None:
            seen = scaled(viewed(evaluator, everyone), everyone.labels).mean(0)
            own = scaled(evaluator.logits(reference), reference.labels).sigmoid()
            population = (own, said.population)
        scores = scores_of(
            logits,
            everyone.labels,
            seen=seen,
            out=None if said is None else said.odds,
            population=population,
            estimate=estimate,
        )
        self.progress.stage("compare")
        return membership(
            scores,
            self.compared,
            flagged.examples,
            unseen.examples,
            logits[: len(flagged)],
            self.class_names,
            self.settings.seed,
        )

    def _assembled(
        self, evaluator: Evaluator, observed: Observed, said: Said | None, found: Membership
    ) -> Verification:
        incomplete = [ReportWarning(code="MEM001", message=reason) for reason in self.admitted.incomplete]
        gate = self.policy.judge(found)
        logits, context = observed.context.flagged_logits, observed.context
        right = predicted(margin(logits, context.flagged.labels))
        members = len(self.compared.flagged)
        unseen = self.unseen.subset(self.compared.unseen)
        own = predicted(margin(logits[members:], unseen.labels))
        hits = int(predicted(context.reference_margins).sum())
        return Verification(
            status="incomplete" if incomplete else "complete",
            verdict="fail" if gate.failed or incomplete else "pass",
            tool=ToolInfo(version=__version__),
            command=self.provenance.command,
            inputs=dict(self.provenance.inputs),
            by=self.provenance.by,
            config=dict(self.provenance.config) or config_of(self.settings),
            environment=environment(evaluator.device),
            volatile=times(self.started),
            model=model_info(evaluator.adapter, self.provenance, logits.shape[1]),
            flagged=_source(self.admitted.flagged, int(right[:members].sum()), members),
            reference=_source(context.reference, hits, len(context.reference)),
            unseen=_source(unseen, int(own.sum()), len(unseen)),
            class_names=list(self.class_names),
            class_order=self.provenance.class_order,
            without=[] if said is None else said.models,
            membership=found,
            warnings=[*incomplete, *self.warnings, *observed.warnings],
            gate=gate,
        )


def _source(examples: ExampleSet, right: int, of: int) -> DataSource:
    """A set, and how many of `of` labels the model predicts."""
    low, high = wilson(right, of)
    return DataSource(
        source=examples.source,
        count=len(examples),
        sha256=examples.sha256,
        accuracy=tidy(right / of) if of else None,
        low=tidy(low),
        high=tidy(high),
    )


def verify(
    model: nn.Module | Adapter,
    flagged: Any,
    reference: Any,
    unseen: Any,
    *,
    without: Sequence[nn.Module] = (),
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
    max_tpr_at_fpr: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Verification:
    """Ask a model in memory whether it still tells flagged examples from others that it never saw.

    Args:
        model: a classifier, or a loaded adapter; left as found.
        flagged, reference: as for `memaudit.audit`.
        unseen: examples that the model was certainly not trained on, drawn as the flagged ones were.
        without: models that were trained without the flagged examples; they take the same inputs.
        max_tpr_at_fpr: the policy, `"0.1%:1%"`: at a false-positive rate of 0.1 %, at most 1 % may be found.
        settings, preprocess, class_names, progress, **options: as for `memaudit.audit`.

    Returns:
        The verification; `.membership`, `.verdict`, `.save(path)`.

    Raises:
        MemauditError: a set is empty or does not fit, a premise is broken, memory or device are missing.
    """
    chosen = settings_for(model, settings, options)
    shape = model.preprocess if isinstance(model, Adapter) else preprocess or as_given(flagged, model)
    sets = {
        name: examples_of(given, name, shape)
        for name, given in (("flagged", flagged), ("reference", reference), ("unseen", unseen))
    }
    others = [Other(f"model {n}", "", wrap(one.eval(), shape), sets) for n, one in enumerate(without, 1)]
    with as_found(model.module if isinstance(model, Adapter) else model):
        adapter = model if isinstance(model, Adapter) else wrap(model, shape)
        return Verifier(
            adapter,
            sets["flagged"],
            sets["reference"],
            sets["unseen"],
            chosen,
            others=others,
            policy=MembershipPolicy.parse(max_tpr_at_fpr),
            class_names=tuple(class_names),
            progress=progress,
        ).run()
