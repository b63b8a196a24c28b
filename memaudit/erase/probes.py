"""How firmly an edit suppresses labels: what noise on the input, and a little training, bring back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.train import AdamW, Descent
from memaudit.erase.request import Sets
from memaudit.findings import NoisePoint, RandomEdit, RelearnPoint
from memaudit.network.scoped import holding, needing_gradients
from memaudit.numbers import tidy

# Steps after which the relearning probe looks, its rate (AdamW without decay), and the noise probe's levels and draws.
STEPS = (0, 1, 2, 5, 10, 20)
RATE = 3e-4
SIGMAS = (0.1, 0.2, 0.4)
DRAWS = 3
# Examples a probe runs at most, and other flagged ones that the model relearns where few were edited.
PROBED = 512
SHOWN = 32


@dataclass(frozen=True)
class Noisy:
    """A pass: how many labels are predicted with Gaussian noise on the inputs, over `DRAWS` draws.

    Attributes:
        deviation: of the noise, in the units of the inputs.
    """

    deviation: float
    generator: torch.Generator

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> int:
        noise = torch.randn((DRAWS, *inputs.shape), generator=self.generator).to(inputs)
        with torch.no_grad():
            said = [network.forward(inputs + self.deviation * one) for one in noise]
        return sum(int(predicted(margin(logits, labels)).sum()) for logits in said)


def noise(before: Evaluator, after: Evaluator, flagged: Panel, seed: int) -> list[NoisePoint]:
    """How often noise on the input brings a flagged label back; the same noise for both models. None on token ids."""
    rows = list(flagged.rows)[:PROBED]
    if not rows or flagged.examples.whole:
        return []
    scale = float(flagged.examples.batch(rows[:64], before.device).std())
    points = []
    for sigma in SIGMAS:
        rates = []
        for evaluator in (before, after):
            shaken = Noisy(sigma * scale, generator_for(seed, "noise", str(sigma)))
            said = evaluator.each(flagged.examples, rows, shaken, batch=64, forward=DRAWS)
            rates.append(sum(said) / (DRAWS * len(rows)))
        points.append(NoisePoint(sigma=sigma, before=tidy(rates[0]), after=tidy(rates[1])))
    return points


def random_edits(
    before: Evaluator,
    sets: Sets,
    edit: Callable[[int], AbstractContextManager[None]],
    draws: int,
    kind: str,
    parts: int,
) -> RandomEdit | None:
    """The control: what `draws` random edits of the same size leave of the labels and of the reference.

    Args:
        edit: by the draw's number, the original with that edit for as long as it is open.
        parts: how many of `kind` each takes out.
    """
    if not parts or not sets.used:
        return None
    used, reference = Panel(sets.flagged, sets.used), Panel(sets.reference, range(len(sets.reference)))
    kept, right = [], []
    for draw in range(draws):
        with edit(draw):
            kept.append(float(before.predicted(used).float().mean()))
            right.append(float(before.predicted(reference).float().mean()))
    return RandomEdit(
        draws=draws, kind=kind, units=parts, used=tidy(sum(kept) / draws), reference=tidy(sum(right) / draws)
    )


def relearning(after: Evaluator, edited: Panel, others: Panel, reference: ExampleSet, seed: int) -> list[RelearnPoint]:
    """Train the edited model a few steps on other flagged examples: how fast do those come back that it was edited for?

    Trained on are as many of `others` as make a third; where there are fewer, a third of the edited ones themselves.
    The control trains on as many reference examples instead.
    """

    def shuffled(panel: Panel) -> list[int]:
        order = torch.randperm(len(panel), generator=generator_for(seed, "relearn", "flagged")).tolist()
        return [panel.rows[i] for i in order]

    shown, rest = shuffled(others), shuffled(edited)
    if 2 * len(shown) < len(rest):
        shown, rest = rest[: len(rest) // 3], rest[len(rest) // 3 :]
    shown = shown[: max(1, len(rest) // 2, SHOWN)][:PROBED]
    if not shown or not rest:
        return []
    clean_rows = torch.randperm(len(reference), generator=generator_for(seed, "relearn", "reference")).tolist()
    rest_of = Panel(edited.examples, rest[:PROBED])
    again = _relearn(after, Panel(edited.examples, shown), rest_of, seed)
    control = _relearn(after, Panel(reference, clean_rows[: len(shown)]), rest_of, seed)
    return [RelearnPoint(steps=s, rest=tidy(a), control=tidy(b)) for s, a, b in zip(STEPS, again, control, strict=True)]


def _relearn(evaluator: Evaluator, shown: Panel, rest: Panel, seed: int) -> list[float]:
    """Share of `rest` whose label is predicted after each of `STEPS`; the model is put back."""
    module = evaluator.adapter.module
    generator = generator_for(seed, "relearn", "order")
    found = []
    with _restored(module), needing_gradients(module) as parameters:
        step = Descent(AdamW(parameters.values(), RATE))
        for number in range(STEPS[-1] + 1):
            if number in STEPS:
                found.append(float(evaluator.predicted(rest).float().mean()))
            if number < STEPS[-1]:
                drawn = torch.randperm(len(shown), generator=generator)[:64].tolist()
                evaluator.each(shown.examples, [shown.rows[i] for i in drawn], step, batch=64, backward=1)
    return found


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Whatever the body trains is a copy; the network's own tensors come back untouched."""
    with holding(module, {n: p.detach().clone() for n, p in module.named_parameters()}):
        yield
