"""Suppress a whole group of memorized labels: layers keep their high-curvature components, chosen against a budget.

The choice of layers and of the share of curvature that they keep is made on a validation split; what the choice is
worth is measured on a split, and on flagged examples, that chose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from memaudit.batchnorm import CALIBRATION, norms, reestimated
from memaudit.controls import generator_for
from memaudit.curvature import Spectrum, editable, spectra
from memaudit.data import ExampleSet
from memaudit.erase import Request, check_editable, prove, sets_of, write
from memaudit.errors import DataRejected, ModelRejected
from memaudit.evaluate import Evaluator, Panel, exact_arithmetic, margin
from memaudit.findings import Candidate, EditedLayer, Erasure
from memaudit.intervals import tidy
from memaudit.replay import watch
from memaudit.states import holding
from memaudit.text import clean

# Shares of the held-out examples: for the factors, for choosing, and the rest for the final figures; and most of each.
FACTORS, VALIDATION = 0.35, 0.25
MOST_FACTORS, MOST_VALIDATION = 1500, 2000
# Share of the fitted flagged examples that the choice is made with, and most of them.
USED, MOST_USED = 1 / 3, 400
# Depths from which on layers are edited, and shares of curvature they keep, the mildest first. On CIFAR-10 the last
# two of nine layers gave up most labels for the least accuracy.
STARTS = (0.25, 0.5, 0.625, 0.75)
KEPT = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1)
# How much smaller a share is tried for single layers in the end.
LOWER = 0.1
# Fewest examples that a choice can rest on.
FEWEST = 20

Edit = dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One edit and what it does on the examples used for choosing: labels still predicted, validation accuracy."""

    kept: Mapping[str, float]
    flagged: float
    validation: float


def by_curvature(request: Request, max_test_drop: float) -> Erasure:
    """Cut low-curvature components so that flagged labels go, within `max_test_drop` of validation accuracy.

    Raises:
        ModelRejected: the model cannot be edited, or no edit keeps within the budget.
        DataRejected: there are too few examples to choose with and to measure on.
    """
    module = request.adapter.module
    check_editable(module)
    _check_norms(module)
    with exact_arithmetic():
        before = request.evaluator()
        pool = request.test if request.test is not None else request.reference
        factors, validation, final = _split(len(pool), request.seed)
        fitted = (margin(before.logits(request.flagged), request.flagged.labels) > 0).nonzero().flatten().tolist()
        order = torch.randperm(len(fitted), generator=generator_for(request.seed, "erase", "flagged")).tolist()
        used = sorted(fitted[i] for i in order[: max(1, min(MOST_USED, round(USED * len(fitted))))])
        if not fitted:
            raise DataRejected("the model predicts none of the flagged labels: there is nothing to suppress")
        sets = sets_of(request, before, used, pool, final)
        clean_rows = torch.randperm(len(sets.reference), generator=generator_for(request.seed, "erase", "clean"))
        calibration = Panel(sets.reference, clean_rows[:CALIBRATION].tolist())
        layers, use = in_order(before, sets.reference)
        request.progress.stage("curvature", len(factors))
        found = {
            s.layer: s
            for s in spectra(before, Panel(pool, factors), layers, generator_for(request.seed, "erase", "labels"))
        }
        search = Search(before, found, calibration, Panel(sets.flagged, used), Panel(pool, validation), use)
        request.progress.stage("choose")
        best, trials = search.run(max_test_drop)
        request.progress.stage("edit")
        state = {n: t.detach().clone() for n, t in module.state_dict().items()}
        state |= {n: t for n, t in search.edit(best.kept).items() if n in state}
        write(state, request.output)
        return prove(request, before, sets).erasure(
            "curvature",
            layers=[_edited(found[path], share) for path, share in best.kept.items()],
            candidates=[
                Candidate(
                    layers=list(t.kept),
                    curvature=tidy(sum(t.kept.values()) / len(t.kept)),
                    flagged=tidy(t.flagged),
                    validation=tidy(t.validation),
                    chosen=t is best,
                )
                for t in trials
            ],
            max_test_drop=tidy(max_test_drop),
            notes=[] if request.test is not None else [NO_TEST],
        )


NO_TEST = "Without --test, reference examples were split in its place: a model trained on them looks better than it is."


def _check_norms(module: nn.Module) -> None:
    """Raise where weights change but the statistics that follow them cannot."""
    without = [p for p, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    if without:
        raise ModelRejected(
            f"the model cannot be edited: {clean(without[0])} keeps no normalisation statistics to re-estimate",
            hint="Its BatchNorm uses each batch's own; train with track_running_stats=True, or use --method units.",
        )


def _split(count: int, seed: int) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Rows for factors, for validation and for the final figures."""
    order = torch.randperm(count, generator=generator_for(seed, "erase", "split")).tolist()
    first, second = round(FACTORS * count), round((FACTORS + VALIDATION) * count)
    parts = order[:first][:MOST_FACTORS], order[first:second][:MOST_VALIDATION], order[second:]
    if min(map(len, parts)) < FEWEST:
        raise DataRejected(
            f"{count} held-out examples are too few to choose an edit and to measure it",
            hint=f"Give {round(FEWEST / VALIDATION)} or more with --test; a thousand tell accuracies a point apart.",
        )
    return sorted(parts[0]), sorted(parts[1]), tuple(sorted(parts[2]))


def in_order(evaluator: Evaluator, reference: ExampleSet) -> tuple[dict[str, nn.Conv2d | nn.Linear], Mapping[str, int]]:
    """The editable layers in the order they run, without the classifier; and when each tensor is first used."""
    adapter = evaluator.adapter
    use = watch(adapter.module, adapter.forward, reference.batch([0], evaluator.device)).first_use
    layers = {p: m for p, m in editable(adapter.module).items() if f"{p}.weight" in use}
    ordered = sorted(layers, key=lambda path: use[f"{path}.weight"])[:-1]
    if not ordered:
        raise ModelRejected("the model cannot be edited: no convolution or linear layer before its classifier")
    return {path: layers[path] for path in ordered}, use


@dataclass(frozen=True)
class Search:
    """Tries edits on examples that no final figure is measured on.

    Attributes:
        found: spectra by layer, in execution order.
        calibration: clean examples that BatchNorm is re-estimated on.
        flagged, validation: what an edit is chosen by.
        use: when each tensor of the network is first used.
        tried: every trial so far; none is made twice.
    """

    evaluator: Evaluator
    found: Mapping[str, Spectrum]
    calibration: Panel
    flagged: Panel
    validation: Panel
    use: Mapping[str, int]
    tried: dict[tuple[tuple[str, float], ...], Trial] = field(default_factory=dict)

    def run(self, budget: float) -> tuple[Trial, list[Trial]]:
        """The edit that leaves the fewest labels within the budget, and everything that was tried.

        Raises:
            ModelRejected: none keeps within the budget.
        """
        least = self.trial({}).validation - budget
        trials: list[Trial] = []
        for count in dict.fromkeys(len(self.found) - int(start * len(self.found)) for start in STARTS):
            trials += self.bisected(list(self.found)[-count:], least)
        within = [t for t in trials if t.validation >= least]
        if not within:
            raise ModelRejected(
                f"no edit keeps validation accuracy within {100 * budget:g} points",
                hint="Allow more with --max-test-drop, or silence units of single findings with --method units.",
            )
        best = min(within, key=lambda t: t.flagged)
        for trial in self.refined(best, least):
            trials.append(trial)
            if trial.validation >= least and trial.flagged < best.flagged:
                best = trial
        return best, trials

    def bisected(self, layers: Sequence[str], least: float) -> Iterator[Trial]:
        """Ever closer to the smallest common share of `layers` that keeps the accuracy, which falls with the share."""
        inside, outside = -1, len(KEPT)
        while outside - inside > 1:
            middle = (inside + outside) // 2
            trial = self.trial(dict.fromkeys(layers, KEPT[middle]))
            inside, outside = (middle, outside) if trial.validation >= least else (inside, middle)
            yield trial

    def refined(self, best: Trial, least: float) -> Iterator[Trial]:
        """Layer by layer, a smaller share than the common one."""
        kept = dict(best.kept)
        for path in kept:
            lower = next((k for k in KEPT if k <= kept[path] - LOWER), None)
            if lower is None:
                continue
            trial = self.trial({**kept, path: lower})
            if trial.validation >= least and trial.flagged < best.flagged:
                kept, best = dict(trial.kept), trial
            yield trial

    def trial(self, kept: Mapping[str, float]) -> Trial:
        """Labels and accuracy with the layers of `kept` edited; nothing of it stays."""
        key = tuple(kept.items())
        if key not in self.tried:
            with holding(self.evaluator.adapter.module, self.edit(kept) if kept else {}):
                self.tried[key] = Trial(kept, self._right(self.flagged), self._right(self.validation))
        return self.tried[key]

    def edit(self, kept: Mapping[str, float]) -> Edit:
        """By name, the weights and the BatchNorm statistics of the edited network."""
        weights = {f"{path}.weight": self.found[path].kept(share) for path, share in kept.items()}
        return {**weights, **reestimated(self.evaluator, weights, self.calibration, self.later(kept))}

    def later(self, kept: Mapping[str, float]) -> list[str]:
        """The BatchNorm modules that see what an edit of the layers `kept` changes: those that run after the first."""
        first = min((self.use[f"{path}.weight"] for path in kept), default=0)
        return [p for p in norms(self.evaluator.adapter.module) if self.use.get(f"{p}.running_mean", first) >= first]

    def _right(self, panel: Panel) -> float:
        said = self.evaluator.logits(panel.examples, panel.rows).argmax(1)
        return float((said == panel.examples.labels[list(panel.rows)]).float().mean())


def _edited(spectrum: Spectrum, share: float) -> EditedLayer:
    return EditedLayer(layer=spectrum.layer, curvature=tidy(share), components=tidy(spectrum.components(share)))
