"""The counterfactual: what models trained without an example say of it, and whether cutting units says the same.

A label that a model gives only with the example in its training set is memorized in the sense of Feldman and Zhang 2020
(definition 1); with one model each way the difference of its probabilities is one draw of their estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.base import ForExample, ForReport, Piece, Workload
from memaudit.audits.context import Context
from memaudit.engine.answers import confidence, margin, predicted, share
from memaudit.engine.draws import generator_for
from memaudit.engine.evaluator import Panel
from memaudit.engine.others import Other, viewed
from memaudit.engine.views import TRIED, VIEWS, some, support
from memaudit.findings import Brought, Counterfactual, Counterfactuals, Held, OtherModel
from memaudit.intervals import bootstrap, correlation
from memaudit.network.units import random_cut
from memaudit.numbers import tidy


@dataclass(frozen=True)
class Without:
    """What the models without the flagged examples say of them.

    Attributes:
        models: who they are.
        right: `(M, N)` bool, which labels each predicts.
        probability, margin: `(M, N)` of the label; the probability averaged over shifted views.
        support: `(M, N)`, the label's margin averaged over moved, mirrored and zoomed views.
        answer: `(N,)`, the class with the largest mean probability.
    """

    models: list[OtherModel]
    right: Tensor
    probability: Tensor
    margin: Tensor
    support: Tensor
    answer: Tensor


@dataclass(frozen=True)
class Cuts:
    """The audited model with a finding's units cut, and with random ones, of the rows that have units.

    Attributes:
        own: by row, the class it gives and the label's margin.
        random: by row, those of each draw: `(draws,)` and `(draws,)`.
    """

    own: Mapping[int, tuple[int, float]]
    random: Mapping[int, tuple[Tensor, Tensor]]


class CounterfactualAudit:
    """Runs wherever models without the flagged examples are given, after localization."""

    name = "counterfactual"

    def passes(self, size: Workload) -> float:
        """A look at every example by each of two models, and the random units again."""
        looked = (5 + 1 + len(VIEWS)) * size.flagged + size.reference + (1 + len(VIEWS)) * min(TRIED, size.reference)
        return 2.0 * looked + size.profile.draws * size.fitted

    def pieces(self, size: Workload) -> int:
        """The other models stay with the process that asks."""
        return 1

    def run(self, context: Context) -> Iterator[Piece]:
        """`counterfactual` of every flagged example, and `counterfactuals` of the list."""
        others, flagged = context.without, context.flagged
        with context.stage("ask the models without", len(others), own_steps=True):
            without = self._asked(context, others)
            own = confidence_of(viewed(context.evaluator, flagged), flagged.labels)
        with context.stage("cut and without", len(context.fitted), own_steps=True):
            cuts = _cuts(context)
        found = [_one(context, row, float(own[row]), without, cuts) for row in range(len(flagged))]
        for row, one in enumerate(found):
            yield ForExample(row, {"counterfactual": one})
        yield ForReport("counterfactuals", _all(context, found, without, cuts))

    def _asked(self, context: Context, others: Sequence[Other]) -> Without:
        models, right, probability, margins, supports, classes = [], [], [], [], [], []
        flagged = context.flagged
        few = context.reference.subset(some(Panel(context.reference, range(len(context.reference)))).rows)
        for other in others:
            own, clean = other.among("flagged", flagged), other.among("reference", few)
            with other.running(context.evaluator) as asked:
                seen = viewed(asked, own)
                supports.append(support(asked, own, Panel(clean, range(len(clean)))))
            gap = margin(seen[0], own.labels)
            right.append(predicted(gap))
            margins.append(gap)
            probability.append(confidence_of(seen, own.labels))
            classes.append(seen.double().softmax(-1).mean(0))
            if other.model is not None:
                models.append(other.model)
            context.progress.advance()
        answer = torch.stack(classes).mean(0).argmax(1)
        return Without(
            models,
            right=torch.stack(right),
            probability=torch.stack(probability),
            margin=torch.stack(margins),
            support=torch.stack(supports),
            answer=answer,
        )


def confidence_of(seen: Tensor, labels: Tensor) -> Tensor:
    """Probability `(N,)` of `labels`, averaged over the views of `seen` `(views, N, classes)`."""
    return torch.stack([confidence(logits, labels) for logits in seen]).mean(0)


def held(fitted: bool, right: int, models: int) -> Held:
    """What the label rests on: memorized where most models without it do not give it."""
    if not fitted:
        return Held.NOT_FITTED
    return Held.LEARNED if 2 * right >= models else Held.MEMORIZED


def _cuts(context: Context) -> Cuts:
    """Each finding's units cut again beside as many random ones: the classes that come out."""
    own: dict[int, tuple[int, float]] = {}
    random: dict[int, tuple[Tensor, Tensor]] = {}
    flagged, space, draws = context.flagged, context.space, context.profile.draws
    for row in context.fitted:
        values = context.found.get(row, {})
        units, after = values.get("units"), values.get("after")
        context.progress.advance()
        if not units or after is None:
            continue
        own[row] = after.prediction, after.margin
        cut = [space.number(u.layer, u.index, u.kind) for u in units]
        example = flagged.examples[row]
        generator = generator_for(context.seed, "counterfactual", f"{example.id}:{example.label}")
        chosen = [random_cut(space, context.live, cut, generator) for _ in range(draws)]
        logits = context.evaluator.logits(flagged, [row] * draws, chosen, space, context.fill)
        random[row] = logits.argmax(1), margin(logits, flagged.labels[[row] * draws])
    return Cuts(own, random)


def _one(context: Context, row: int, own: float, without: Without, cuts: Cuts) -> Counterfactual:
    models, said = without.right.shape[0], without.probability[:, row]
    right, answer = int(without.right[:, row].sum()), int(without.answer[row])
    half = _half(said)
    difference = own - float(said.mean())
    drawn = cuts.random.get(row)
    return Counterfactual(
        held=held(row in set(context.fitted), right, models),
        models=models,
        right=right,
        answer=answer,
        probability=tidy(own),
        probability_without=tidy(float(said.mean())),
        margin=tidy(float(context.flagged_margins[row])),
        margin_without=tidy(float(without.margin[:, row].mean())),
        support_without=tidy(float(without.support[:, row].mean())),
        difference=tidy(difference),
        low=None if half is None else tidy(max(-1.0, difference - half)),
        high=None if half is None else tidy(min(1.0, difference + half)),
        ablated=cuts.own[row][0] == answer if row in cuts.own else None,
        random_draws=0 if drawn is None else len(drawn[0]),
        random_agrees=0 if drawn is None else int((drawn[0] == answer).sum()),
    )


def _half(said: Tensor) -> float | None:
    """Half of Student's 95 % interval of a mean over models; None of one."""
    from scipy.stats import t

    if len(said) < 2:
        return None
    return float(t.ppf(0.975, len(said) - 1) * said.std() / len(said) ** 0.5)


def _all(context: Context, found: Sequence[Counterfactual], without: Without, cuts: Cuts) -> Counterfactuals:
    differences = [one.difference for one in found]
    low, high = bootstrap(differences, context.seed)
    estimates = [context.found[row]["estimate"].score for row in range(len(found)) if "estimate" in context.found[row]]
    ours = correlation(estimates, differences) if len(estimates) == len(found) else None
    return Counterfactuals(
        models=without.models,
        memorized=share(sum(one.held is Held.MEMORIZED for one in found), len(found)),
        learned=share(sum(one.held is Held.LEARNED for one in found), len(found)),
        not_fitted=share(sum(one.held is Held.NOT_FITTED for one in found), len(found)),
        difference=tidy(sum(differences) / len(differences)),
        low=tidy(low),
        high=tidy(high),
        estimate=None if ours is None else tidy(ours[0]),
        estimate_low=None if ours is None else tidy(ours[1]),
        estimate_high=None if ours is None else tidy(ours[2]),
        brought=_brought(found, without, cuts),
    )


def _brought(found: Sequence[Counterfactual], without: Without, cuts: Cuts) -> Brought | None:
    """Whether the cut brings back the counterfactual's answer, where that is another than the label."""
    rows = [row for row in cuts.own if found[row].held is Held.MEMORIZED]
    if not rows:
        return None
    ours = sum(bool(found[row].ablated) for row in rows)
    draws, agree = sum(found[r].random_draws for r in rows), sum(found[r].random_agrees for r in rows)
    truth = [float(without.margin[:, row].mean()) for row in rows]
    own = correlation([cuts.own[row][1] for row in rows], truth)
    random = correlation([float(cuts.random[row][1].mean()) for row in rows], truth)
    return Brought(
        examples=len(rows),
        ours=share(ours, len(rows)),
        random=share(agree, draws),
        correlation=None if own is None else tidy(own[0]),
        correlation_low=None if own is None else tidy(own[1]),
        correlation_high=None if own is None else tidy(own[2]),
        random_correlation=None if random is None else tidy(random[0]),
    )
