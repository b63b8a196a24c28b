"""What edits of a whole group are tried on, how clean steps follow one, and which one is chosen.

No final figure is measured on any of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from memaudit.data import ExampleSet
from memaudit.engine.batchnorm import CALIBRATION, norms, reestimated
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.erase.finetune import Shown, batch_of, finetuned
from memaudit.errors import ModelRejected
from memaudit.network.replay import watch
from memaudit.network.scoped import holding

Edit = dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One edit and what it does on the examples used for choosing: labels still predicted, validation accuracy.

    Attributes:
        kept: the layers it changes, and the share of each that it keeps.
        how: what is kept, or put in its place, in words; empty: of the curvature.
    """

    kept: Mapping[str, float]
    steps: int
    flagged: float
    validation: float
    how: str = ""


@dataclass(frozen=True)
class Ground:
    """The network, and the examples on which an edit is made and chosen.

    Attributes:
        clean: what clean steps train on; BatchNorm is re-estimated on its first examples.
        flagged, validation: what an edit is chosen by.
        use: when each tensor of the network is first used.
        shown: how clean steps change the inputs they show; None: not at all.
        wrong: examples whose labels clean steps learn to be wrong; None: of no label is that known.
    """

    evaluator: Evaluator
    clean: Panel
    flagged: Panel
    validation: Panel
    use: Mapping[str, int]
    seed: int = 0
    shown: Shown | None = None
    wrong: Panel | None = None

    @property
    def module(self) -> nn.Module:
        """The network as it was given."""
        return self.evaluator.adapter.module

    @cached_property
    def intact(self) -> Trial:
        """No edit."""
        return self.trial({}, {})

    def trial(self, edit: Mapping[str, Tensor], kept: Mapping[str, float], steps: int = 0, how: str = "") -> Trial:
        """What the network with the tensors of `edit` in place predicts."""
        with holding(self.module, edit):
            left, right = (float(self.evaluator.predicted(p).float().mean()) for p in (self.flagged, self.validation))
        return Trial(kept, steps, left, right, how)

    def mended(
        self, edit: Mapping[str, Tensor], first: int, steps: int = 0, names: Collection[str] | None = None
    ) -> Edit:
        """`edit` after `steps` of training on clean examples, with BatchNorm statistics that fit the result.

        Args:
            first: the use from which on the network is another one.
            names: parameters that are trained; by default all that are used from `first` on.
        """
        values, paths = dict(edit), self.later(first)
        if steps:
            trained = [n for n, _ in self.module.named_parameters() if self.use.get(n, -1) >= first]
            generator = generator_for(self.seed, "erase", "steps")
            names = trained if names is None else names
            values |= finetuned(
                self.evaluator, values, names, paths, self.clean, steps, generator, self.shown, self.wrong
            )
        calibration = Panel(self.clean.examples, self.clean.rows[:CALIBRATION])
        return {**values, **reestimated(self.evaluator, values, calibration, paths)}

    def first(self, names: Iterable[str]) -> int:
        """When the first of the tensors `names` is used."""
        return min((self.use[n] for n in names if n in self.use), default=0)

    def later(self, first: int) -> list[str]:
        """The BatchNorm modules that see what a change at `first` changes: those that run from then on."""
        return [p for p in norms(self.module) if self.use.get(f"{p}.running_mean", first) >= first]

    def cost(self, steps: int) -> int:
        """Examples that `mended` runs."""
        return min(CALIBRATION, len(self.clean)) + steps * batch_of(self.wrong)

    @property
    def judging(self) -> int:
        """Examples that `trial` runs."""
        return len(self.flagged) + len(self.validation)

    def within(self, trials: Sequence[Trial], budget: float) -> list[Trial]:
        """Those of `trials` that cost at most `budget` of the validation accuracy.

        Raises:
            ModelRejected: none does.
        """
        found = [t for t in trials if t.validation >= self.intact.validation - budget]
        if not found:
            raise ModelRejected(
                f"no edit keeps validation accuracy within {100 * budget:g} points",
                hint="Allow more with --max-test-drop, or silence units of single findings with --method units.",
            )
        return found

    def safest(self, trials: Sequence[Trial]) -> Trial:
        """The edit with the highest accuracy among those within one standard error of the fewest labels.

        The rule of Breiman et al. 1984, section 3.4.3: a difference that chance makes is worth no accuracy.
        """
        least = min(t.flagged for t in trials)
        error = (least * (1 - least) / len(self.flagged)) ** 0.5
        return max((t for t in trials if t.flagged <= least + error), key=lambda t: (t.validation, -t.flagged))


def first_uses(evaluator: Evaluator, examples: ExampleSet) -> Mapping[str, int]:
    """When each tensor of the network is first used, by name."""
    adapter = evaluator.adapter
    return watch(adapter.module, adapter.forward, examples.batch([0], evaluator.device)).first_use
