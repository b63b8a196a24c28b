"""Which layers to cut, and how far: edits are tried against a budget of accuracy, on examples kept for that.

Two stages where clean steps follow the edit: cheap trials without them show at which depth a group's labels sit, and
trials with them show how far the cut may go there, which is further, because the steps bring accuracy back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from memaudit.data import ExampleSet
from memaudit.engine.batchnorm import CALIBRATION, norms, reestimated
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase.curvature import Spectrum, editable
from memaudit.erase.finetune import BATCH, finetuned
from memaudit.errors import ModelRejected
from memaudit.network.replay import watch
from memaudit.network.scoped import holding

# Depths from which on layers are edited, and shares of curvature they keep, the mildest first. On CIFAR-10 the last
# two or three of eight layers gave up most labels for the least accuracy.
STARTS = (0.25, 0.5, 0.625, 0.75)
KEPT = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1)
# Shares tried with clean steps, which take longer than all else.
STEPPED = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# How much smaller a share is tried for single layers in the end.
LOWER = 0.1
# How many depths are tried with clean steps.
SHORT = 2

Edit = dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One edit and what it does on the examples used for choosing: labels still predicted, validation accuracy."""

    kept: Mapping[str, float]
    steps: int
    flagged: float
    validation: float


@dataclass(frozen=True)
class EditSearch:
    """Tries edits on examples that no final figure is measured on.

    Attributes:
        found: spectra by layer, in execution order.
        clean: what clean steps train on; BatchNorm is re-estimated on its first examples.
        flagged, validation: what an edit is chosen by.
        use: when each tensor of the network is first used.
        steps: clean steps that follow the edit.
        tried: every trial so far; none is made twice.
    """

    evaluator: Evaluator
    found: Mapping[str, Spectrum]
    clean: Panel
    flagged: Panel
    validation: Panel
    use: Mapping[str, int]
    steps: int = 0
    seed: int = 0
    tried: dict[tuple[int, tuple[tuple[str, float], ...]], Trial] = field(default_factory=dict)

    def run(self, budget: float) -> tuple[Trial, list[Trial]]:
        """The edit of the budget that leaves the fewest labels, as `safest` says, and everything that was tried.

        Raises:
            ModelRejected: none keeps within the budget.
        """
        least = self.trial({}).validation - budget
        by_depth = [list(self.bisected(layers, KEPT, least)) for layers in self.depths()]
        trials = [t for depth in by_depth for t in depth]
        if self.steps:
            left = [min((t.flagged for t in depth if t.validation >= least), default=1.0) for depth in by_depth]
            for _, depth in sorted(zip(left, by_depth, strict=True), key=lambda pair: pair[0])[:SHORT]:
                trials += self.bisected(list(depth[0].kept), STEPPED, least, self.steps)
        within = [t for t in trials if t.validation >= least]
        if not within:
            raise ModelRejected(
                f"no edit keeps validation accuracy within {100 * budget:g} points",
                hint="Allow more with --max-test-drop, or silence units of single findings with --method units.",
            )
        best = self.safest(within)
        if not self.steps:
            for trial in self.refined(best, least):
                trials.append(trial)
                if trial.validation >= least and trial.flagged < best.flagged:
                    best = trial
        return best, trials

    def safest(self, trials: Sequence[Trial]) -> Trial:
        """The edit with the highest accuracy among those within one standard error of the fewest labels.

        The rule of Breiman et al. 1984, section 3.4.3: a difference that chance makes is worth no accuracy.
        """
        least = min(t.flagged for t in trials)
        error = (least * (1 - least) / len(self.flagged)) ** 0.5
        return max((t for t in trials if t.flagged <= least + error), key=lambda t: (t.validation, -t.flagged))

    def depths(self) -> list[list[str]]:
        """The last layers of the network from each of `STARTS` on, the most first."""
        count = len(self.found)
        return [list(self.found)[-n:] for n in dict.fromkeys(count - int(start * count) for start in STARTS)]

    def most(self) -> int:
        """Examples that `run` runs at most."""
        depths, judging = self.depths(), len(self.flagged) + len(self.validation)
        first = 1 + len(depths) * len(KEPT).bit_length()
        then = SHORT * len(STEPPED).bit_length() if self.steps else len(depths[0])
        return first * (self.cost(0) + judging) + then * (self.cost(self.steps) + judging)

    def cost(self, steps: int) -> int:
        """Examples that one edit with so many clean steps runs."""
        return min(CALIBRATION, len(self.clean)) + steps * BATCH

    def bisected(self, layers: Sequence[str], shares: Sequence[float], least: float, steps: int = 0) -> Iterator[Trial]:
        """Ever closer to the smallest of `shares` that keeps the accuracy, which falls with the share of `layers`."""
        inside, outside = -1, len(shares)
        while outside - inside > 1:
            middle = (inside + outside) // 2
            trial = self.trial(dict.fromkeys(layers, shares[middle]), steps)
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

    def trial(self, kept: Mapping[str, float], steps: int = 0) -> Trial:
        """Labels and accuracy with the layers of `kept` edited; nothing of it stays."""
        key = steps, tuple(kept.items())
        if key not in self.tried:
            with holding(self.evaluator.adapter.module, self.edit(kept, steps) if kept else {}):
                seen = [float(self.evaluator.predicted(p).float().mean()) for p in (self.flagged, self.validation)]
                self.tried[key] = Trial(kept, steps, *seen)
        return self.tried[key]

    def edit(self, kept: Mapping[str, float], steps: int = 0) -> Edit:
        """By name, the tensors of the edited network that differ: with steps, all that run after the first cut."""
        first, paths = self._first(kept), self.later(kept)
        values = {f"{path}.weight": self.found[path].kept(share) for path, share in kept.items()}
        if steps:
            names = [n for n, _ in self.evaluator.adapter.module.named_parameters() if self.use.get(n, -1) >= first]
            generator = generator_for(self.seed, "erase", "steps")
            values |= finetuned(self.evaluator, values, names, paths, self.clean, steps, generator)
        calibration = Panel(self.clean.examples, self.clean.rows[:CALIBRATION])
        return {**values, **reestimated(self.evaluator, values, calibration, paths)}

    def later(self, kept: Mapping[str, float]) -> list[str]:
        """The BatchNorm modules that see what an edit of the layers `kept` changes: those that run after the first."""
        first = self._first(kept)
        return [p for p in norms(self.evaluator.adapter.module) if self.use.get(f"{p}.running_mean", first) >= first]

    def _first(self, kept: Mapping[str, float]) -> int:
        """When the first of the layers `kept` runs."""
        return min((self.use[f"{path}.weight"] for path in kept), default=0)


def editable_layers(
    evaluator: Evaluator, reference: ExampleSet
) -> tuple[dict[str, nn.Conv2d | nn.Linear], Mapping[str, int]]:
    """The editable layers in the order they run, without the classifier; and when each tensor is first used.

    Raises:
        ModelRejected: there is none.
    """
    adapter = evaluator.adapter
    use = watch(adapter.module, adapter.forward, reference.batch([0], evaluator.device)).first_use
    layers = {p: m for p, m in editable(adapter.module).items() if f"{p}.weight" in use}
    ordered = sorted(layers, key=lambda path: use[f"{path}.weight"])[:-1]
    if not ordered:
        raise ModelRejected("the model cannot be edited: no convolution or linear layer before its classifier")
    return {path: layers[path] for path in ordered}, use
