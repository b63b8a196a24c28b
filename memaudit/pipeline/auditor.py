"""The story of one audit: premises, fit, localization, controls, and the report they add up to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memaudit.adapters.base import Adapter
from memaudit.audits.atypicality import Observation, Support, live_units, observe, observe_flagged
from memaudit.audits.layerwise import OverTime
from memaudit.audits.localize import flagged_set as groups
from memaudit.audits.localize.controls import Judge
from memaudit.audits.localize.cost import settle
from memaudit.audits.localize.known import known_units
from memaudit.audits.localize.search import Population, Proposal, Search, measure_population
from memaudit.data import ExampleSet, finding_id, remove_overlap
from memaudit.engine.answers import margin, predicted, prediction
from memaudit.engine.device import automatic_batch_size, exact_arithmetic, resolve_device
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.journal import Journal, journalled
from memaudit.errors import DataRejected, Incomplete, PremiseBroken, UsageError
from memaudit.findings import (
    Atypicality,
    Controls,
    Finding,
    Groups,
    KnownUnits,
    LayerEvidence,
    Neuron,
    Outcome,
    RandomControl,
    ReferenceAccuracy,
    ReportWarning,
    SeriesPoint,
    Stability,
    interned,
)
from memaudit.network.states import State
from memaudit.network.units import select
from memaudit.numbers import tidy
from memaudit.pipeline.assemble import Evidence, assemble, skeleton
from memaudit.pipeline.identity import run_of
from memaudit.pipeline.premises import check_accuracy, check_labels, check_network
from memaudit.report.document import Report
from memaudit.settings import AUDITS, DTYPES, OVER_TIME, PROFILES, Progress, Provenance, Settings, Silent
from memaudit.system.memory import give_back, keep_freed
from memaudit.text import closest

# A label is atypical when at most this share of the reference is as unsupported.
ATYPICAL_P = 0.05
# Reference accuracy may fall by this much before an erased example counts as entangled.
REFERENCE_BUDGET = 0.05
# Random units may erase this share of the draws before an erased example counts as entangled.
RANDOM_BUDGET = 0.1
# Findings between two times that freed memory is given back to the system.
GIVE_BACK_EVERY = 256


class Auditor:
    """One audit of one loaded model.

    Args:
        adapter: the model; moved to the settings' device.
        flagged: examples under audit.
        reference: clean examples; rows that are also flagged are dropped and counted.
        states: checkpoints of the series, earliest first, the audited model last.
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
    ) -> None:
        if settings.profile not in PROFILES:
            raise UsageError(f"no profile {settings.profile!r}", hint="Choose fast, standard or deep.")
        if settings.ablation not in ("zero", "mean"):
            raise UsageError(f"no ablation {settings.ablation!r}", hint="Choose zero or mean.")
        if settings.dtype not in DTYPES:
            raise UsageError(f"no dtype {settings.dtype!r}", hint=f"Choose {' or '.join(DTYPES)}.")
        for name in ("max_units", "batch_size", "limit"):
            value = getattr(settings, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        self.audits = _chosen(settings, states)
        self.adapter, self.settings, self.states = adapter, settings, states
        self.provenance = provenance or Provenance()
        self.class_names = class_names
        self.progress: Progress = progress or Silent()
        self.profile = PROFILES[settings.profile]
        self.warnings: list[ReportWarning] = list(self.provenance.warnings)
        self.incomplete: list[str] = []
        self.journal: Journal | None = None
        self.late = False  # the time limit was reached: the same run, resumed, gets further
        self.test = test
        for name, examples in (("flagged", flagged), ("reference", reference)):
            if not len(examples) and examples.unreadable:
                raise Incomplete(f"none of the {name} examples could be read", details=examples.unreadable)
        if not len(flagged):
            raise DataRejected("there is no flagged example to audit", hint="Name at least one with --flagged.")
        reference, overlap = remove_overlap(reference, flagged)
        if overlap:
            self.warn("MEM101", f"{overlap} reference examples are also flagged; they were left out of the reference")
        if len(reference) < 2:
            raise DataRejected(
                f"{len(reference)} reference examples are too few",
                hint="Give clean examples the flagged ones do not contain: a few hundred give useful intervals.",
            )
        if settings.limit is not None and len(flagged) > settings.limit:
            self.incomplete.append(
                f"--limit {settings.limit}: {len(flagged) - settings.limit} flagged examples not audited"
            )
            flagged = flagged.subset(range(settings.limit))
        for name, examples in (("flagged", flagged), ("reference", reference)):
            if examples.omitted:
                self.incomplete.append(f"{examples.omitted} {name} examples were not read because of a limit")
            if examples.duplicates:
                self.warn("MEM105", f"{len(examples.duplicates)} {name} rows repeat others: {examples.duplicates[0]}")
        for name, examples in (("flagged", flagged), ("reference", reference)):
            if examples.unreadable:
                shown = "; ".join(examples.unreadable[:3])
                self.incomplete.append(f"{len(examples.unreadable)} {name} examples could not be read: {shown}")
        self.flagged, self.reference = flagged, reference

    def warn(self, code: str, message: str) -> None:
        """Put something a reader must know into the report."""
        self.warnings.append(ReportWarning(code=code, message=message))

    @contextmanager
    def journalled(self, folder: Path, *, fresh: bool = False) -> Iterator[Journal]:
        """Keep what is measured in `folder` while the body runs, and go on with what an earlier run kept there.

        Raises:
            UsageError: what lies there belongs to another run, and `fresh` does not say to throw it away.
        """
        sets = {"flagged": self.flagged, "reference": self.reference, "test": self.test}
        run = run_of(self.adapter, sets, self.states, self.settings, self.provenance)
        with journalled(folder, run, fresh=fresh) as self.journal:
            yield self.journal

    def skeleton(self) -> Report:
        """What can be said before anything is measured: every name, no figure."""
        names = self.class_names or self.reference.class_names
        return skeleton(self.adapter, self.settings, self.provenance, self.flagged, self.reference, names)

    def run(self) -> Report:
        """All of it, and the report."""
        for _ in self.findings():
            pass
        return self.report()

    def report(self) -> Report:
        """What the findings and everything else this audit measured add up to."""
        test_accuracy = None
        if self.test is not None:
            with exact_arithmetic():
                right = self.evaluator.predicted(Panel(self.test, range(len(self.test))))
            test_accuracy = float(right.float().mean())
        return assemble(
            Evidence(
                adapter=self.adapter,
                settings=self.settings,
                provenance=self.provenance,
                evaluator=self.evaluator,
                flagged=self.flagged,
                reference=self.reference,
                test=self.test,
                fitted=len(self.fitted_rows) / len(self.flagged),
                accuracy=self.accuracy,
                test_accuracy=test_accuracy,
                num_classes=self.flagged_seen.logits.shape[1],
                class_names=self.class_names or self.reference.class_names,
                space=self.space,
                live=self.live,
                calibration=self.calibration,
                neurons=self.neurons,
                groups=self.groups,
                known_units=self.known_units,
                series=self.series,
                layers=self.layers,
                lateness=None if self.over_time is None else self.over_time.calibration,
                warnings=self.warnings,
                incomplete=self.incomplete,
                started=self.started,
            ),
            list(self.found.values()),
        )

    # ---- the steps ---------------------------------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Findings as they land. After the last one `report` may be called; it holds their final figures.

        A finding's reference cost is told from its own rows when it lands, and once more with all the others' at the
        end: its interval narrows, and one at the edge of the budget may change its outcome.
        """
        self.started = time.time()
        keep_freed()
        device = resolve_device(self.settings.device)
        self.adapter.module.to(device)
        batch = self.settings.batch_size or automatic_batch_size(self.reference.pixels[:1], device)
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        self.evaluator = Evaluator(self.adapter, batch, advance=self.progress.advance, gradient_dtype=dtype)
        with exact_arithmetic():
            yield from self._findings()
            self._finish()

    def _findings(self) -> Iterator[Finding]:
        self._prepare()
        supports, flagged, seen = self.supports, self.flagged, self.flagged_seen
        margins = margin(seen.logits, flagged.labels)
        self.fitted_rows = predicted(margins).nonzero().flatten().tolist()
        fitted = set(self.fitted_rows)
        self.found: dict[int, Finding] = {}
        for row in range(len(flagged)):
            if row not in fitted:
                self.found[row] = self._finding(row, supports, Outcome.NOT_FITTED)
                yield self.found[row]
        if not fitted:
            self.warn(
                "MEM102", "the model predicts none of the flagged labels: nothing was memorized that could be erased"
            )
        if "localize" not in self.audits:
            for row in self.fitted_rows:
                self.found[row] = self._finding(row, supports, Outcome.NOT_SEARCHED)
                yield self.found[row]
            return
        self._stage("localize", len(self.fitted_rows))
        deadline = self._deadline()
        for proposal in self.search.run(self._quiet(), flagged, self.fitted_rows):
            if time.time() > deadline:
                left = len(flagged) - len(self.found)
                self.incomplete.append(
                    f"time limit of {self.settings.time_limit:g} s: {left} flagged examples not audited"
                )
                self.late = True
                break
            self.progress.advance()
            if len(self.found) % GIVE_BACK_EVERY == 0:
                give_back()
            self.found[proposal.row] = self._judged(proposal, supports)
            yield self.found[proposal.row]

    def _prepare(self) -> None:
        """Premises, sites, one observing pass over each set, and the two panels of reference examples."""
        self._stage("check", None)
        check_network(self.evaluator, self.reference)
        probe = self.reference.batch(self._sound_rows(3), self.evaluator.device)
        self.all_sites = self.adapter.sites(probe)
        if not self.all_sites:
            raise PremiseBroken(
                f"no layer of {self.adapter.architecture} can be cut so that a weight edit does the same",
                hint="memaudit follows convolutions, linear layers and attention that run as modules of their own.",
            )
        self.space = select(self.all_sites, self.settings.unit, self.settings.layers)
        self.evaluator.resume(self.journal)  # this process has shown that the premises hold; now measurements begin
        self._stage("reference", len(self.reference) + len(self.flagged))
        self._see()
        if self._drop_non_finite():
            self._see()  # NaN would stay in the statistics
        classes = self.flagged_seen.logits.shape[1]
        self.warnings += check_labels(self.flagged, self.reference, classes)
        self.reference_margins = margin(self.reference_seen.logits, self.reference.labels)
        self.accuracy = float(predicted(self.reference_margins).float().mean())
        names = self.class_names or self.reference.class_names
        self.warnings += check_accuracy(self.reference_seen.logits, self.reference.labels, names)
        self.live = live_units(self.space, self.reference_seen)
        # A unit that fires for flagged examples alone is just what the search is for.
        candidates = live_units(self.space, self.reference_seen, self.flagged_seen)
        self.fill = self.reference_seen.means if self.settings.ablation == "mean" else None
        if "localize" in self.audits:
            self._prepare_search(candidates)
        self._prepare_over_time()

    def _prepare_search(self, candidates: Tensor) -> None:
        """What each unit does to the reference: one panel for the search, another to measure costs on."""
        order = torch.randperm(len(self.reference), generator=generator_for(self.settings.seed, "panels", "")).tolist()
        half = len(order) // 2
        fitted = int(predicted(margin(self.flagged_seen.logits, self.flagged.labels)).sum())
        self._stage("population", min(half, self.profile.search_rows))
        population = self._population(order[:half])
        panel = sorted(order[half:][: self.profile.panel_rows])
        self._stage("panel", len(panel))
        self.search = Search(
            self.space,
            candidates,
            population,
            self.settings.max_units,
            fill=self.fill,
            look_ahead=self.profile.look_ahead,
        )
        self.judge = Judge(
            self.evaluator,
            self.space,
            self.reference,
            panel,
            measure_population(self.evaluator, self.space, self.reference, panel, self.fill),
            self.live,
            self.profile.at_risk,
            max(self.profile.at_random, -(-self.profile.sampled // max(1, fitted))),
            self.settings.seed,
            self.profile.copies,
            self.fill,
        )

    def _population(self, rows: Sequence[int]) -> Population:
        """What each unit does to the first of `rows`, as many as a search predicts its risk on."""
        chosen = sorted(rows[: self.profile.search_rows])
        return measure_population(self.evaluator, self.space, self.reference, chosen, self.fill)

    def _sound_rows(self, count: int) -> list[int]:
        """The first reference rows with finite logits, of a few; NaN would look like a layer that cannot be cut."""
        few = list(range(min(8, len(self.reference))))
        finite = torch.isfinite(self.evaluator.logits(self.reference, few)).all(1).tolist()
        sound = [row for row in few if finite[row]]
        return (sound if len(sound) > 1 else few)[:count]

    def _prepare_over_time(self) -> None:
        """The earlier states in place of the audited one: when each label was learned."""
        self.over_time: OverTime | None = None
        self.series: list[SeriesPoint] = []
        self.layers: list[LayerEvidence] = []
        if not set(self.audits) & set(OVER_TIME):
            return
        self.over_time = OverTime(
            self.evaluator,
            [state.to(self.evaluator.device) for state in self.states],
            self.flagged,
            self.reference,
            margin(self.flagged_seen.logits, self.flagged.labels),
            self.reference_margins,
            self.profile,
            self.settings.seed,
            self.settings.group_depth,
            self.settings.layers,
            self._stage,
            self._deadline(),
        )
        self.over_time.follow()
        self.series = self.over_time.series()

    def _layers(self) -> None:
        """Layer by layer, where any flagged label is fitted."""
        if self.over_time is None or not self.fitted_rows:
            return
        self.evaluator.advance = self.progress.advance
        self.layers = self.over_time.evidence(self.audits)
        self.late = self.late or bool(self.over_time.late)
        for what in self.over_time.late:
            self.incomplete.append(f"time limit of {self.settings.time_limit:g} s: {what} not done")

    def _see(self) -> None:
        """One observing pass over each set."""
        self.reference_seen = observe(self.evaluator, self.reference, self.space)
        self.flagged_seen, self.supports, self.calibration = observe_flagged(
            self.evaluator, self.flagged, self.space, self.reference_seen, self.reference.labels
        )

    def _drop_non_finite(self) -> bool:
        """Leave out examples whose logits are not finite: the audit is incomplete. Whether there were any."""
        dropped = False
        for name in ("flagged", "reference"):
            examples: ExampleSet = getattr(self, name)
            seen: Observation = getattr(self, f"{name}_seen")
            finite = torch.isfinite(seen.logits).all(1)
            if bool(finite.all()):
                continue
            lost = int((~finite).sum())
            self.incomplete.append(f"{lost} {name} examples gave logits that are not finite")
            if int(finite.sum()) < (2 if name == "reference" else 1):
                raise Incomplete(f"the logits of {lost} of {len(examples)} {name} examples are NaN or infinite")
            setattr(self, name, examples.subset(finite.nonzero().flatten().tolist()))
            dropped = True
        return dropped

    def _finding(self, row: int, support: Support, outcome: Outcome, **more: Any) -> Finding:
        example = self.flagged.examples[row]
        score, p_value = float(support.score[row]), float(support.p_value[row])
        before = prediction(self.flagged_seen.logits[row], example.label)
        fitted = outcome is not Outcome.NOT_FITTED
        return Finding(
            id=finding_id(example.id, example.label),
            example=example,
            outcome=outcome,
            fitted=fitted,
            memorized=fitted and p_value <= ATYPICAL_P,
            atypicality=interned(Atypicality(score=tidy(score), p_value=tidy(p_value))),
            learning=None if self.over_time is None else self.over_time.learning(row),
            before=before,
            **more,
        )

    def _judged(self, proposal: Proposal, support: Support) -> Finding:
        """Measure a proposal with a fresh ablation, put its controls beside it, and say what became of it."""
        row, cut = proposal.row, proposal.cut
        example = self.flagged.examples[row]
        key = f"{example.id}:{example.label}"
        self.evaluator.stage = "verify"
        quiet, judge = self._quiet(), self.judge
        logits = quiet.logits(self.flagged, [row], [cut], self.space, self.fill)[0]
        after = prediction(logits, example.label) if bool(torch.isfinite(logits).all()) else None
        erased = after is not None and after.prediction != example.label
        cost = judge.reference_accuracy(cut, key)
        random = judge.random_units(self.flagged, row, cut, self.profile.draws, key)
        controls = Controls(
            random=random,
            augmented=judge.augmented(self.flagged, row, cut),
            flagged_others=judge.flagged_others(self.flagged, row, cut, self.fitted_rows, self.profile.others, key),
        )
        outcome = _erased(cost, random) if erased else Outcome.DIFFUSE
        self.evaluator.stage = "localize"
        return self._finding(
            row,
            support,
            outcome,
            after=after,
            units=[self.space.unit(number) for number in cut],
            reference_accuracy=cost,
            controls=interned(controls),
        )

    def _finish(self) -> None:
        """What only the whole set shows: shared units, the trade-off curve, matched clean examples; and the layers."""
        self.neurons: list[Neuron] = []
        self.groups = Groups()
        self.known_units: KnownUnits | None = None
        if "localize" in self.audits:
            self._finish_search()
        self._layers()

    def _finish_search(self) -> None:
        self._settle()
        findings, quiet = list(self.found.values()), self.evaluator
        erased = [f for f in findings if f.outcome in groups.ERASED]
        self._stage("neurons", min(self.profile.neurons, len({u for f in erased for u in f.units})))
        quiet.advance = _nothing
        self.neurons = groups.neurons(findings, self.judge, self.profile.neurons, self.progress.advance)
        self._stage("trade-off", None)
        curve = groups.trade_off(self.neurons, self.judge, self.flagged, self.fitted_rows)
        rows = self.fitted_rows[:: max(1, -(-len(self.fitted_rows) // self.profile.clean))]
        self._stage("matched clean", len(rows))
        margins = margin(self.flagged_seen.logits, self.flagged.labels)
        matched = groups.matched(
            findings,
            self.search,
            self.judge,
            self.flagged,
            rows,
            margins,
            self.reference_margins,
            self.progress.advance,
        )
        self.groups = Groups(
            curve=curve,
            overlap=groups.overlap([f.units for f in erased]),
            matched_controls=matched,
            stability=self._stability() if self.profile.seeds else None,
        )
        self.known_units = known_units(self.evaluator, self.space, self.live, self.flagged, self.reference, self.found)

    def _stability(self) -> Stability:
        """The search with other reference examples, of those this run's panel leaves."""
        cuts = {
            row: [self.space.number(u.layer, u.index, u.kind) for u in f.units]
            for row, f in sorted(self.found.items())
            if f.outcome in groups.ERASED
        }
        self._stage("stability", self.profile.seeds * len(cuts))
        self._quiet()
        panel, searches = set(self.judge.panel), {}
        rest = [row for row in range(len(self.reference)) if row not in panel]
        for seed in range(self.settings.seed + 1, self.settings.seed + 1 + self.profile.seeds):
            order = torch.randperm(len(rest), generator=generator_for(seed, "panels", "")).tolist()
            searches[seed] = replace(
                self.search, population=self._population([rest[i] for i in order[: len(rest) // 2]])
            )
        return groups.stability(searches, self.judge, self.flagged, cuts, self.progress.advance)

    def _settle(self) -> None:
        """Reference costs once more, now that what all findings' samples say together is known."""
        measured = {row: f.reference_accuracy for row, f in self.found.items() if f.reference_accuracy}
        for row, cost in zip(measured, settle(list(measured.values())), strict=True):
            finding = self.found[row]
            outcome = finding.outcome
            if outcome in groups.ERASED and finding.controls:
                outcome = _erased(cost, finding.controls.random)
            self.found[row] = finding.model_copy(update={"reference_accuracy": cost, "outcome": outcome})

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return self.started + (self.settings.time_limit or float("inf"))

    def _stage(self, name: str, total: int | None) -> None:
        give_back()
        self.evaluator.stage = name
        self.progress.stage(name, total)

    def _quiet(self) -> Evaluator:
        """The evaluator for stages whose progress is counted in findings, not in passes."""
        self.evaluator.advance = _nothing
        return self.evaluator


def _chosen(settings: Settings, states: Sequence[State]) -> tuple[str, ...]:
    """The audits that will run.

    Raises:
        UsageError: one does not exist, or needs earlier checkpoints and there are none.
    """
    earlier = any(not state.final for state in states)
    if settings.audits is None:
        return AUDITS if earlier else AUDITS[:1]
    for name in settings.audits:
        if name not in AUDITS:
            raise UsageError(f"no audit {name!r}{closest(name, AUDITS)}", hint=f"Choose among: {', '.join(AUDITS)}")
    over_time = [name for name in settings.audits if name in OVER_TIME]
    if over_time and not earlier:
        raise UsageError(
            f"{over_time[0]} needs earlier checkpoints of the model, and there are none",
            hint="Name them with --checkpoints DIR, GLOB or FILE; memaudit inspect MODEL shows what is found.",
        )
    return tuple(name for name in AUDITS if name in settings.audits)


def _erased(cost: ReferenceAccuracy, random: RandomControl) -> Outcome:
    """What becomes of an erased example: localized if the reference survives and random units do not do the same."""
    survives = cost.after >= cost.before - REFERENCE_BUDGET
    special = random.erased <= RANDOM_BUDGET * random.draws
    return Outcome.LOCALIZED if survives and special else Outcome.ENTANGLED


def _nothing(_: int) -> None:
    return None
