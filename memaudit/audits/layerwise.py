"""The audits over time: one model, its earlier states, and what each layer group had to do with the flagged labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from memaudit.audits.gradients import Account, account
from memaudit.audits.learning import Course, follow, p_values
from memaudit.audits.panels import matched_clean
from memaudit.audits.retrain import BATCH, RATE, Run, retrain
from memaudit.audits.rewind import Grid, check_controls, rewind
from memaudit.audits.verdicts import verdict
from memaudit.data import ExampleSet
from memaudit.engine.answers import predicted
from memaudit.engine.batchnorm import CALIBRATION
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.findings import GradientPoint, LayerEvidence, Learning, Retrain, RetrainEpoch, RewindPoint, SeriesPoint
from memaudit.intervals import bootstrap, bootstrap_runs
from memaudit.network.layer_groups import LayerGroup, layer_groups
from memaudit.network.replay import watch
from memaudit.network.scoped import unchanged
from memaudit.network.states import State
from memaudit.numbers import tidy
from memaudit.settings import Profile

# A few dozen reference examples make few steps an epoch: the budget is never fewer steps than this.
LEAST_STEPS = 150

# A sum of gradients is noisier than a share of right answers and cheaper to measure: so many times the examples.
GRADIENT_ROWS = 4

Stage = Callable[[str, int | None], None]


@dataclass
class OverTime:
    """Everything the audits over time need; made once per audit.

    Attributes:
        states: earliest first, the audited model last.
        stage: told what begins, and of how many steps.
        deadline: seconds since the epoch; no further audit or layer is begun after it.
        late: what was not begun.
    """

    evaluator: Evaluator
    states: Sequence[State]
    flagged: ExampleSet
    reference: ExampleSet
    flagged_margins: Tensor
    reference_margins: Tensor
    profile: Profile
    seed: int
    depth: int | None
    layers: str | None
    stage: Stage
    deadline: float = float("inf")
    late: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        module, few = self.evaluator.adapter.module, min(2, len(self.reference))
        plan = watch(module, self.evaluator.adapter.forward, self.reference.batch(range(few), self.evaluator.device))
        self.groups: tuple[LayerGroup, ...] = tuple(
            g for g in layer_groups(module, plan.first_use, depth=self.depth, layers=self.layers) if g.parameters
        )
        self.panels, others = self._panels()
        self.training = Panel(self.reference, self._drawn(others, self.profile.retrain_rows, "retrain"))

    def _panels(self) -> tuple[dict[str, Panel], list[int]]:
        """Fitted flagged examples, clean ones matched to them and other reference examples; and all of those others."""
        fitted = predicted(self.flagged_margins).nonzero().flatten().tolist()
        rows = self._drawn(fitted, self.profile.flagged_rows, "flagged")
        matched = self._matched_with(rows)
        others = sorted(set(range(len(self.reference))) - set(matched))
        if not others:  # every reference example is some flagged one's match
            matched, others = [], list(range(len(self.reference)))
        panels = {
            "flagged": Panel(self.flagged, rows),
            "matched": Panel(self.reference, matched),
            "reference": Panel(self.reference, self._drawn(others, self.profile.reference_rows, "reference")),
        }
        return panels, others

    def _matched_with(self, rows: Sequence[int]) -> list[int]:
        """The clean examples matched to flagged `rows`."""
        pairs = matched_clean(
            self.flagged_margins[rows], self.flagged.labels[rows], self.reference_margins, self.reference.labels
        )
        return sorted(row for _, row in pairs)

    def _drawn(self, rows: Sequence[int], most: int, purpose: str) -> list[int]:
        order = torch.randperm(len(rows), generator=generator_for(self.seed, "over time", purpose)).tolist()
        return sorted(rows[i] for i in order[:most])

    # ---- learning order --------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Run every flagged example, and the reference panels, through all states."""
        everything = list(range(len(self.flagged)))
        sample = sorted({*self.panels["reference"].rows, *self.panels["matched"].rows})
        self.stage("learning order", len(self.states) * (len(everything) + len(sample)))
        with unchanged(self.evaluator.adapter.module, "the learning order"):
            self.course: Course = follow(self.evaluator, self.states, self.flagged, everything)
            self._reference = follow(self.evaluator, self.states, self.reference, sample)
        place = {row: n for n, row in enumerate(sample)}
        self._matched = [place[r] for r in self.panels["matched"].rows]
        self.calibration = self._reference.lateness
        self._p = p_values(self.course.lateness, self.calibration)

    def learning(self, row: int) -> Learning:
        """When flagged example `row` was learned."""
        learned = self.course.learned[row]
        return Learning(
            score=tidy(float(self.course.lateness[row])),
            p_value=tidy(float(self._p[row])),
            learned=None if learned is None else self.states[learned].label,
            confidence=[tidy(c) for c in self.course.confidence[:, row].tolist()],
        )

    def series(self) -> list[SeriesPoint]:
        """The checkpoints, and what each predicts as a whole."""
        return [
            SeriesPoint(
                checkpoint=state.label,
                file=state.file,
                epoch=state.epoch,
                step=state.step,
                sha256=state.sha256,
                final=state.final,
                flagged=_mean(self.course.right[n]),
                reference=_mean(self._reference.right[n]),
                matched=_mean(self._reference.right[n][self._matched]),
                flagged_confidence=_mean(self.course.confidence[n]),
                reference_confidence=_mean(self._reference.confidence[n]),
                matched_confidence=_mean(self._reference.confidence[n][self._matched]),
            )
            for n, state in enumerate(self.states)
        ]

    # ---- layer by layer --------------------------------------------------------------------------------------------

    def evidence(self, audits: Sequence[str]) -> list[LayerEvidence]:
        """What the asked-for audits say of each layer group, in execution order.

        Raises:
            PremiseBroken: putting a checkpoint in place does not give that checkpoint.
            BugError: an audit left the model changed.
        """
        module = self.evaluator.adapter.module
        count = len(self.groups)
        gradients: list[list[GradientPoint]] = [[] for _ in range(count)]
        rewound: list[list[RewindPoint]] = [[] for _ in range(count)]
        retrained: list[Retrain | None] = [None] * count
        if "gradients" in audits and self._in_time("gradient accounting"):
            with unchanged(module, "gradient accounting"):
                gradients = self._gradients()
        if "rewind" in audits and self._in_time("layer rewinding"):
            with unchanged(module, "layer rewinding"):
                rewound = self._rewind()
        if "retrain" in audits and self._in_time("layer retraining"):
            with unchanged(module, "layer retraining"):
                retrained = self._retrain()
        found = []
        for group, accounts, points, trained in zip(self.groups, gradients, rewound, retrained, strict=True):
            word, sentence = verdict(trained, points)
            found.append(
                LayerEvidence(
                    layer=group.layer,
                    parameters=group.parameters,
                    gradients=accounts,
                    rewind=points,
                    retrain=trained,
                    verdict=word,
                    sentence=sentence,
                )
            )
        return found

    def _in_time(self, what: str) -> bool:
        if time.time() < self.deadline:
            return True
        self.late.append(what)
        return False

    def _gradients(self) -> list[list[GradientPoint]]:
        """All flagged examples and the whole reference count, whether they came to be fitted or not."""
        flagged = self._drawn(range(len(self.flagged)), GRADIENT_ROWS * self.profile.flagged_rows, "flagged")
        reference = self._drawn(range(len(self.reference)), GRADIENT_ROWS * self.profile.reference_rows, "reference")
        every = {
            "flagged": Panel(self.flagged, flagged),
            "matched": Panel(self.reference, self._matched_with(flagged)),
            "reference": Panel(self.reference, reference),
        }
        panels = {name: panel for name, panel in every.items() if len(panel)}
        self.stage("gradients", len(self.states) * sum(map(len, panels.values())))
        found: list[list[GradientPoint]] = [[] for _ in self.groups]
        for state in self.states:
            accounts = account(self.evaluator, self.groups, state, panels)
            for points, group, one in zip(found, self.groups, accounts, strict=True):
                points.append(_gradient(state, group, one, {name: len(panel) for name, panel in panels.items()}))
        return found

    def _rewind(self) -> list[list[RewindPoint]]:
        names = [name for name, panel in self.panels.items() if len(panel)]
        check_controls(self.evaluator, self.groups, self.states, self.panels["reference"])
        panels = [self.panels[name] for name in names]
        self.stage("rewind", sum(map(len, panels)))
        grid = rewind(self.evaluator, self.groups, self.states, panels, self._calibration())
        states = list(enumerate(self.states))
        return [[self._cell(grid, names, g, c, state) for c, state in states] for g in range(len(self.groups))]

    def _calibration(self) -> Panel:
        reference = self.panels["reference"]
        return Panel(reference.examples, reference.rows[:CALIBRATION])

    def _cell(self, grid: Grid, names: Sequence[str], g: int, c: int, state: State) -> RewindPoint:
        plain = {name: right[g, c] for name, right in zip(names, grid.right, strict=True)}
        second = {} if grid.recalibrated is None else dict(
            zip(names, (right[g, c] for right in grid.recalibrated), strict=True)
        )  # fmt: skip
        low, high = bootstrap(plain["flagged"].float().tolist(), self.seed)
        values: dict[str, float | None] = {}
        if second:
            again = bootstrap(second["flagged"].float().tolist(), self.seed)
            values = {
                "flagged_recalibrated": _mean(second["flagged"]),
                "recalibrated_low": tidy(again[0]),
                "recalibrated_high": tidy(again[1]),
                "reference_recalibrated": _mean(second["reference"]),
                "matched_recalibrated": _mean(second["matched"]) if "matched" in second else None,
            }
        return RewindPoint(
            checkpoint=state.label,
            flagged=_mean(plain["flagged"]) or 0.0,
            flagged_low=tidy(low),
            flagged_high=tidy(high),
            reference=_mean(plain["reference"]) or 0.0,
            matched=_mean(plain["matched"]) if "matched" in plain else None,
            **values,
        )

    def _retrain(self) -> list[Retrain | None]:
        seeds = list(range(self.profile.retrain_seeds))
        start = self.states[0]
        steps = -(-len(self.training) // BATCH)
        budget = max(self.profile.retrain_epochs, -(-LEAST_STEPS // steps))
        before = float(self.evaluator.predicted(self.training).float().mean())
        self.stage("retrain", len(self.groups) * len(seeds))
        advance, self.evaluator.advance = self.evaluator.advance, lambda _: None
        found: list[Retrain | None] = []
        for group in self.groups:
            if not self._in_time(f"retraining {group.layer}"):
                found.append(None)
                continue
            runs = []
            for seed in seeds:
                generator = generator_for(self.seed + seed, "retrain", group.layer)
                runs.append(
                    retrain(
                        self.evaluator, group, start, self.panels["flagged"], self.training, self.panels["matched"],
                        target=before, epochs=budget, generator=generator,
                    )
                )  # fmt: skip
                advance(1)
            found.append(self._retrained(runs, start, before, budget))
        self.evaluator.advance = advance
        return found

    def _retrained(self, runs: Sequence[Run], start: State, before: float, budget: int) -> Retrain:
        flagged = [run.flagged.float().tolist() for run in runs]
        matched = [run.matched.float().tolist() for run in runs if run.matched is not None]
        low, high = bootstrap_runs(flagged, self.seed)
        clean = bootstrap_runs(matched, self.seed) if matched else (None, None)
        last = [run.epochs[-1] for run in runs]
        return Retrain(
            checkpoint=start.label,
            flagged=tidy(_average([e.flagged for e in last])),
            low=tidy(low),
            high=tidy(high),
            reference=tidy(_average([e.reference for e in last])),
            matched=tidy(_average([sum(m) / len(m) for m in matched])) if matched else None,
            matched_low=None if clean[0] is None else tidy(clean[0]),
            matched_high=None if clean[1] is None else tidy(clean[1]),
            reference_before=tidy(before),
            fitted=all(run.fitted for run in runs),
            seeds=list(range(self.seed, self.seed + len(runs))),
            epochs=_epochs(runs),
            budget=budget,
            rate=RATE,
            examples=len(self.training),
        )


def _gradient(state: State, group: LayerGroup, one: Account, sizes: Mapping[str, int]) -> GradientPoint:
    root = group.parameters**0.5

    def ratio(name: str) -> float | None:
        if name not in one.norms or one.norms["reference"] == 0:
            return None
        return tidy(one.norms[name] / sizes[name] / (one.norms["reference"] / sizes["reference"]))

    def cosine(name: str) -> float | None:
        value = one.cosines.get((name, "reference"))
        return None if value is None else tidy(value)

    return GradientPoint(
        checkpoint=state.label,
        flagged=tidy(one.norms["flagged"] / root),
        reference=tidy(one.norms["reference"] / root),
        matched=tidy(one.norms["matched"] / root) if "matched" in one.norms else None,
        ratio=ratio("flagged"),
        matched_ratio=ratio("matched"),
        cosine=cosine("flagged"),
        matched_cosine=cosine("matched"),
    )


def _epochs(runs: Sequence[Run]) -> list[RetrainEpoch]:
    """Epoch by epoch, the mean over seeds; a seed that was done earlier stays where it was."""
    longest = max(len(run.epochs) for run in runs)
    rows = []
    for number in range(longest):
        now = [run.epochs[min(number, len(run.epochs) - 1)] for run in runs]
        matched = [e.matched for e in now if e.matched is not None]
        rows.append(
            RetrainEpoch(
                epoch=number,
                flagged=tidy(_average([e.flagged for e in now])),
                reference=tidy(_average([e.reference for e in now])),
                matched=tidy(_average(matched)) if matched else None,
            )
        )
    return rows


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean(values: Tensor) -> float | None:
    return tidy(min(1.0, float(values.double().mean()))) if len(values) else None
