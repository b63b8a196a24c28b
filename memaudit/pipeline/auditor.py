"""The story of one audit: prepare, run each audit, merge what it yields, and assemble the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memaudit.adapters.base import Adapter
from memaudit.audits.base import Audit, ForExample, ForLayer, ForReport, Piece
from memaudit.audits.context import stage
from memaudit.audits.layerwise import layer_evidence
from memaudit.audits.registry import chosen
from memaudit.data import ExampleSet, finding_id
from memaudit.engine.answers import prediction
from memaudit.engine.device import exact_arithmetic
from memaudit.engine.evaluator import Panel
from memaudit.engine.others import Other
from memaudit.engine.threads import threads_kept
from memaudit.errors import MemauditError, ModelRejected, PremiseBroken
from memaudit.findings import AUDITS, OVER_TIME, Atypicality, Finding, Outcome, interned
from memaudit.network.states import State
from memaudit.numbers import tidy
from memaudit.pipeline.admit import admit
from memaudit.pipeline.assemble import Measured, assemble, skeleton
from memaudit.pipeline.others import check, known
from memaudit.pipeline.prepare import Observed, prepare
from memaudit.pipeline.proceeding import Proceeding
from memaudit.report.document import Report
from memaudit.settings import Progress, Provenance, Settings
from memaudit.system.memory import keeping_freed


class Auditor(Proceeding):
    """One audit of one loaded model.

    Args:
        adapter: the model; moved to the settings' device.
        flagged: examples under audit.
        reference: clean examples; rows that are also flagged are dropped and counted.
        states: checkpoints of the series, earliest first, the audited model last.
        without: models that were trained without the flagged examples.
    """

    def __init__(
        self,
        adapter: Adapter,
        flagged: ExampleSet,
        reference: ExampleSet,
        settings: Settings,
        *,
        provenance: Provenance | None = None,
        class_names: tuple[str, ...] = (),
        progress: Progress | None = None,
        test: ExampleSet | None = None,
        states: Sequence[State] = (),
        without: Sequence[Other] = (),
    ) -> None:
        self.audits = chosen(settings, any(not state.final for state in states), without=bool(without))
        super().__init__(adapter, settings, provenance or Provenance(), progress)
        self.states, self.test, self.without = states, test, without
        self.admitted = admit(flagged, reference, settings.limit)
        self.class_names = class_names or self.admitted.reference.class_names
        self.warnings += self.admitted.warnings
        self.observed: Observed
        self.found: dict[int, dict[str, Any]] = {}
        self.layers: list[dict[str, Any]] = []
        self.whole: dict[str, Any] = {}

    def sets(self) -> Mapping[str, ExampleSet | None]:
        """The sets that the audit depends on, by name."""
        return {"flagged": self.admitted.flagged, "reference": self.admitted.reference, "test": self.test}

    def skeleton(self) -> Report:
        """What can be said before anything is measured: every name, no figure."""
        sets = self.admitted
        return skeleton(self.adapter, self.settings, self.provenance, sets.flagged, sets.reference, self.class_names)

    def run(self) -> Report:
        """All of it, and the report."""
        for _ in self.findings():
            pass
        return self.report()

    def look(self) -> Observed:
        """Every check that an audit makes before it measures, and one look at each example.

        Raises:
            PremiseBroken, ModelRejected, DataRejected, Incomplete: the audit cannot be made.
        """
        self.begin(self.admitted.reference)
        with exact_arithmetic():
            with stage(self.evaluator, self.progress, "check"):
                check(self.without, self.evaluator, self.admitted.reference)
            self.observed = prepare(
                self.evaluator,
                self.admitted,
                self.settings,
                class_names=self.class_names,
                states=self.states,
                journal=self.journal,
                progress=self.progress,
                deadline=self.deadline,
            )
            context = self.observed.context
            context = replace(context, found=self.found)
            if self.without:
                with context.stage("ask the models without", len(self.without), own_steps=True):
                    context = replace(context, without=known(self.without, self.evaluator, context.reference))
            self.observed = replace(self.observed, context=context)
        self.warnings += self.observed.warnings
        self.incomplete += self.observed.incomplete
        return self.observed

    def findings(self) -> Iterator[Finding]:
        """Findings as they land. After the last one `report` may be called; it holds their final figures."""
        with exact_arithmetic(), keeping_freed(), threads_kept():
            self.look()
            yield from self._findings()

    def report(self) -> Report:
        """What the findings and everything else this audit measured add up to."""
        accuracy = None
        if self.test is not None:
            everything = Panel(self.test, range(len(self.test)))
            with exact_arithmetic(), stage(self.evaluator, self.progress, "test", len(self.test), intact=True):
                accuracy = float(self.evaluator.predicted(everything).float().mean())
        return assemble(
            Measured(
                observed=self.observed,
                provenance=self.provenance,
                test=self.test,
                test_accuracy=accuracy,
                class_names=self.class_names,
                layers=layer_evidence(self.observed.context.groups, self.layers) if self.layers else [],
                whole=self.whole,
                warnings=self.warnings,
                incomplete=self.incomplete,
                started=self.started,
            ),
            [self._finding(row) for row, values in self.found.items() if "outcome" in values],
        )

    # ---- the audits, one after another -----------------------------------------------------------------------------

    def _findings(self) -> Iterator[Finding]:
        context = self.observed.context
        fitted = set(context.fitted)
        ahead = [audit for audit in self.audits if audit.name not in (*AUDITS, "counterfactual")]
        landing = [audit for audit in self.audits if audit.name == "localize"]
        for audit in ahead:
            for _ in self._merged(audit):
                pass
        for row in range(len(context.flagged)):
            if row not in fitted or not landing:
                self._merge(ForExample(row, {"outcome": Outcome.NOT_SEARCHED if row in fitted else Outcome.NOT_FITTED}))
                yield self._finding(row)
        if not fitted:
            self.warn(
                "MEM102", "the model predicts none of the flagged labels: nothing was memorized that could be erased"
            )
        for audit in landing:
            for row in self._merged(audit):
                yield self._finding(row)
        for audit in self.audits:
            if audit.name == "counterfactual":
                for _ in self._merged(audit):
                    pass
        if fitted and any(audit.name in OVER_TIME for audit in self.audits):
            self.layers = [{} for _ in context.groups]
            for audit in self.audits:
                if audit.name in OVER_TIME:
                    for _ in self._merged(audit):
                        pass

    def _merged(self, audit: Audit) -> Iterator[int]:
        """Run `audit` and merge what it yields; the rows whose outcome lands, once each.

        An audit whose premise breaks is left out with a word; what the others measured stays.
        """
        landed: set[int] = set()
        try:
            for piece in audit.run(self.observed.context):
                self._merge(piece)
                if isinstance(piece, ForExample) and "outcome" in piece.values and piece.row not in landed:
                    landed.add(piece.row)
                    yield piece.row
        except (PremiseBroken, ModelRejected) as broken:
            self._left_out(audit.name, broken)
            if audit.name == "localize":
                for row in set(self.observed.context.fitted) - landed:
                    self._merge(ForExample(row, {"outcome": Outcome.NOT_SEARCHED}))
                    yield row

    def _left_out(self, name: str, broken: MemauditError) -> None:
        title = AUDITS[name].title if name in AUDITS else name
        said = "; ".join(filter(None, (f"{title} was left out: {broken.message}", broken.hint)))
        self.warn("MEM107", said)
        for fields in self.layers:
            fields.pop(name, None)
        if name not in OVER_TIME or name in (self.settings.audits or ()):
            self.incomplete.append(said)

    def _merge(self, piece: Piece) -> None:
        match piece:
            case ForExample(row, values):
                self.found.setdefault(row, {}).update(values)
            case ForLayer(layer, field, value):
                self.layers[layer][field] = value
            case ForReport(field, value):
                self.whole[field] = value
            case _:
                self.incomplete.append(f"time limit of {self.settings.time_limit:g} s: {piece.what}")
                self.late = True

    def _finding(self, row: int) -> Finding:
        observed = self.observed
        example, values = observed.context.flagged.examples[row], self.found[row]
        score, p_value = float(observed.supports.score[row]), float(observed.supports.p_value[row])
        fitted = values["outcome"] is not Outcome.NOT_FITTED
        return Finding(
            id=finding_id(example.id, example.label),
            example=example,
            fitted=fitted,
            atypicality=interned(Atypicality(score=tidy(score), p_value=tidy(p_value))),
            nearest=observed.nearest(row),
            before=prediction(observed.context.flagged_logits[row], example.label),
            **values,
        )
