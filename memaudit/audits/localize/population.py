"""Reference examples as a search sees them: how far each is from being lost, and what each unit does to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.data.examples import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.passes import Fill
from memaudit.network.units import UnitSpace
from memaudit.system.memory import to_device

# Width of the step from right to wrong, in typical reference margins: how far the linear prediction is trusted.
RISK_SOFTNESS = 0.05
# Examples on which single units are ablated, to see what `effects` do not show; and on how many where more than half an
# example goes wrong of it: one of 16 weighs as much as half of a typical margin, and by chance it is there or not.
SAMPLED, DOUBTED = 16, 64
# Standard deviations above the mean that still count as usual, and fewest examples of a label that tell what is.
USUAL_DEVIATIONS = 0.5
FEWEST = 8


@dataclass(frozen=True)
class Population:
    """Reference examples as the search sees them: how far each is from being lost, and what each unit does to it.

    Attributes:
        margins: `(R,)` at the intact model.
        effects: `(total, R)` drop of each margin per unit, to first order: the gradient by the unit's mask.
        labels: `(R,)` of the examples.
        sample: `DOUBTED` of the examples, the first `SAMPLED` spread over them; places: which they are, `(sample,)`.
    """

    margins: Tensor
    effects: Tensor
    labels: Tensor
    sample: ExampleSet
    places: Tensor

    @cached_property
    def typical(self) -> float:
        """Median margin of the reference examples the model gets right: the unit margins are measured in."""
        right = self.margins[predicted(self.margins)]
        return float(right.median()) if len(right) else 1.0

    def usual(self, label: int, units: Tensor) -> Tensor:
        """What ablating each of `units` `(T,)` usually takes of the margin of examples of `label`, or a little more.

        A unit that carries a class takes as much from any of its examples; one that stores an example takes more from
        that one.
        """
        rows = self.labels == label
        effects = self.effects[units]
        same = effects[:, rows] if int(rows.sum()) >= FEWEST else effects
        return same.mean(1) + USUAL_DEVIATIONS * same.std(1, correction=0)

    def after(self, cuts: Sequence[Sequence[int]]) -> Tensor:
        """Predicted margins `(cuts, R)` with each of `cuts` ablated."""
        starts = torch.tensor([0, *map(len, cuts)]).cumsum(0)[:-1]
        units = torch.tensor(list(chain.from_iterable(cuts)), dtype=torch.long)
        if not len(units):
            return self.margins.repeat(len(cuts), 1)
        units, starts = (to_device(t, self.effects.device) for t in (units, starts))
        return self.margins - F.embedding_bag(units, self.effects, starts, mode="sum")

    def wrong(self, margins: Tensor) -> Tensor:
        """Share of the reference that is wrong at `margins` `(..., R)`, counted softly.

        An example further from being lost than at the intact model counts as there: one answer mended does not pay for
        another lost. On a ViT that is wrong of 15 % of its reference, cuts were chosen for what they mended, and what
        they cost had nothing to do with what was predicted.
        """
        return self._risks(margins, self.margins).mean(-1)

    def _risks(self, margins: Tensor, intact: Tensor) -> Tensor:
        """By example, where intact margins are `intact`, how much of it is wrong at `margins` `(..., n)`."""
        return margins.minimum(intact).mul_(-1 / (RISK_SOFTNESS * self.typical)).sigmoid_()

    def hidden_risk(self, evaluator: Evaluator, space: UnitSpace, units: Sequence[int], fill: Fill) -> Tensor:
        """`(T,)`: how much more of the sample is wrong without each of `units`, counted softly, than `effects` predict.

        What a unit does to examples that it saturates is not in its gradient. Each unit is ablated once, on `SAMPLED`
        examples, and where these leave it in doubt on the others as well.
        """
        new = sorted(set(units).difference(self._hidden))
        if new:
            risks = list(self._surplus(evaluator, space, new, fill, slice(0, SAMPLED)))
            doubted = [n for n, risk in enumerate(risks) if float(risk.sum()) > 0.5]
            rest = self._surplus(evaluator, space, [new[n] for n in doubted], fill, slice(SAMPLED, None))
            for n, more in zip(doubted, rest, strict=True):
                risks[n] = torch.cat([risks[n], more])
            means = [float(risk.mean().clamp_min(0)) for risk in risks]
            self._hidden.update(zip(new, means, strict=True))
        return torch.tensor([self._hidden[unit] for unit in units])

    def _surplus(self, evaluator: Evaluator, space: UnitSpace, units: Sequence[int], fill: Fill, part: slice) -> Tensor:
        """`(units, part)`: by how much more each of a part of the sample is wrong without the unit than predicted."""
        places = self.places[part]
        if not len(places) or not units:
            return torch.zeros(len(units), len(places))
        rows = list(range(len(self.places)))[part]
        cuts = [[unit] for unit in units for _ in rows]
        logits = evaluator.logits(self.sample, rows * len(units), cuts, space, fill)
        after = margin(logits, self.sample.labels[rows].repeat(len(units))).view(len(units), -1)
        intact, effects = self.margins[places], self.effects[units][:, places]
        seen = self._risks(after.nan_to_num(nan=-torch.inf, neginf=-torch.inf), intact)
        return seen - self._risks(intact - effects, intact)

    @cached_property
    def _hidden(self) -> dict[int, float]:
        return {}

    @cached_property
    def wrong_intact(self) -> Tensor:
        """`wrong` of the intact model, a scalar: the least that it can be after a cut."""
        return self.wrong(self.margins)

    def on(self, device: torch.device) -> Population:
        """The same where `device` reads it; moved once."""
        if self.margins.device == device:
            return self
        if device not in self._elsewhere:
            margins, effects, labels = (t.to(device) for t in (self.margins, self.effects, self.labels))
            self._elsewhere[device] = replace(self, margins=margins, effects=effects, labels=labels)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, Population]:
        return {}


# Fast path; its slow twin: tests/twins.py.
def measure_population(
    evaluator: Evaluator,
    space: UnitSpace,
    reference: ExampleSet,
    rows: Sequence[int],
    fill: Fill = None,
) -> Population:
    """Margins and per-unit effects of the reference examples `rows`, in one forward and one backward pass."""
    margins, gradients = evaluator.mask_gradients(reference, rows, [[]] * len(rows), space, margin, fill)
    places = evenly(len(rows), DOUBTED)
    first = evenly(len(places), SAMPLED)
    places = torch.cat([places[first], places[[n for n in range(len(places)) if n not in set(first.tolist())]]])
    return Population(
        margins,
        gradients.nan_to_num().T.contiguous(),
        reference.labels[list(rows)],
        reference.subset([rows[place] for place in places.tolist()]),
        places,
    )


def evenly(count: int, most: int) -> Tensor:
    """At most so many of `count` places, spread over them."""
    number = min(count, most)
    return torch.arange(number) * (count - 1) // max(1, number - 1)
