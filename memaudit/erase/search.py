"""Which layers to cut, and how far: edits are tried against a budget of accuracy, on examples kept for that.

Two stages where clean steps follow the edit: cheap trials without them show at which depth a group's labels sit, and
trials with them show how far the cut may go there, which is further, because the steps bring accuracy back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from memaudit.erase.curvature import Spectrum, editable
from memaudit.erase.ground import Edit, Ground, Trial
from memaudit.errors import ModelRejected

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


@dataclass(frozen=True)
class EditSearch:
    """Tries edits on examples that no final figure is measured on.

    Attributes:
        found: spectra by layer, in execution order.
        steps: clean steps that follow the edit.
        then: what is edited next, by name, with the edit in place.
        tried: every trial so far; none is made twice.
    """

    ground: Ground
    found: Mapping[str, Spectrum]
    steps: int = 0
    then: Callable[[Edit], Edit] | None = None
    tried: dict[tuple[int, tuple[tuple[str, float], ...]], Trial] = field(default_factory=dict)

    def run(self, budget: float) -> tuple[Trial, list[Trial]]:
        """The edit of the budget that leaves the fewest labels, as `Ground.safest` says, and everything that was tried.

        Raises:
            ModelRejected: none keeps within the budget.
        """
        least = self.ground.intact.validation - budget
        by_depth = [list(self.bisected(layers, KEPT, least)) for layers in self.depths()]
        trials = [t for depth in by_depth for t in depth]
        if self.steps:
            left = [min((t.flagged for t in depth if t.validation >= least), default=1.0) for depth in by_depth]
            for _, depth in sorted(zip(left, by_depth, strict=True), key=lambda pair: pair[0])[:SHORT]:
                trials += self.bisected(list(depth[0].kept), STEPPED, least, self.steps)
        best = self.ground.safest(self.ground.within(trials, budget))
        if not self.steps:
            for trial in self.refined(best, least):
                trials.append(trial)
                if trial.validation >= least and trial.flagged < best.flagged:
                    best = trial
        return best, trials

    def depths(self) -> list[list[str]]:
        """The last layers of the network from each of `STARTS` on, the most first."""
        count = len(self.found)
        return [list(self.found)[-n:] for n in dict.fromkeys(count - int(start * count) for start in STARTS)]

    def most(self) -> int:
        """Examples that `run` runs at most."""
        depths, judging, cost = self.depths(), self.ground.judging, self.ground.cost
        first = 1 + len(depths) * len(KEPT).bit_length()
        then = SHORT * len(STEPPED).bit_length() if self.steps else len(depths[0])
        return first * (cost(0) + judging) + then * (cost(self.steps) + judging)

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
        """The network with these shares of curvature kept, and so many clean steps after that."""
        key = (steps, tuple(kept.items()))
        if key not in self.tried:
            self.tried[key] = self.ground.trial(self.edit(kept, steps) if kept else {}, kept, steps)
        return self.tried[key]

    def edit(self, kept: Mapping[str, float], steps: int = 0) -> Edit:
        """By name, the tensors of the edited network that differ: with steps, all that run after the first cut."""
        values = {f"{path}.weight": self.found[path].kept(share) for path, share in kept.items()}
        edit = self.ground.mended(values, self.ground.first(values), steps)
        return edit if self.then is None else {**edit, **self.then(edit)}


def editable_layers(module: nn.Module, use: Mapping[str, int]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The editable layers in the order they run, without the classifier.

    Args:
        use: when each tensor is first used.

    Raises:
        ModelRejected: there is none.
    """
    layers = in_order(module, use)
    if len(layers) < 2:
        raise ModelRejected("the model cannot be edited: no convolution or linear layer before its classifier")
    return dict(list(layers.items())[:-1])


def in_order(module: nn.Module, use: Mapping[str, int]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The editable layers that run, in the order they do."""
    layers = {p: m for p, m in editable(module).items() if f"{p}.weight" in use}
    return dict(sorted(layers.items(), key=lambda item: use[f"{item[0]}.weight"]))
