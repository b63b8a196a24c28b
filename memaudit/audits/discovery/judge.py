"""From what the others say of each label to an estimate of memorization, and to what the label is to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.discovery.noise import Noise, fit_noise
from memaudit.audits.memorization.joint import WEIGHTS
from memaudit.engine.answers import confidence, margin, predicted
from memaudit.findings.ranking import Standing

# Least probability of a class, so that one kind of evidence alone never rules it out.
FLOOR = 1e-3
# Memorized ones are called as long as at most this share of them is expected to have a fitting label.
FALSE_DISCOVERIES = 0.05
# A label that is not predicted is called probably wrong from this probability on.
WRONG = 0.5


@dataclass(frozen=True)
class Judged:
    """Per example `(N,)`, but for `noise`.

    Attributes:
        noise: the mixture, with `(N, classes)` support of each class by everything but the example.
        confidence: of the model in the given label.
        estimate: that, less the support of the label without the example (Feldman and Zhang 2020), in [0, 1].
        gap: the same, negative where the label is better supported than predicted.
        p_value: the chance that a fitting label has as little support.
        wrong: the probability that the label was replaced.
        suggested: the class with the most support.
        order: rows, the most memorized first.
    """

    noise: Noise
    confidence: Tensor
    estimate: Tensor
    gap: Tensor
    p_value: Tensor
    wrong: Tensor
    suggested: Tensor
    standings: tuple[Standing, ...]
    order: Tensor


def teachers(shares: Tensor, labels: Tensor) -> Tensor:
    """`(N,)` bool: examples whose labels may teach others: no class has more of their neighbours' votes.

    Edited nearest neighbours (Wilson 1972). The first of two passes; the second asks what those learned again.
    """
    own = shares.gather(1, labels[:, None]).squeeze(1)
    return own >= shares.max(1).values - 1e-6


def judge(
    logits: Tensor, labels: Tensor, answers: Mapping[str, Tensor], shares: Tensor, views: Tensor | None = None
) -> Judged:
    """The result of all evidence.

    Neighbours and views see features that may hold the label, so they help to put the examples in order and no more:
    how many labels are wrong, and which, rests on the relearned layers alone.

    Args:
        logits: `(N, classes)` of the model as it is.
        answers: by name `(N, classes)` probabilities of each class, from layers that never saw the example.
        shares: `(N, classes)` of the neighbours' votes.
        views: `(N, classes)` probabilities of each class for changed copies; None: they were not asked.
    """
    noise = fit_noise(joined(list(answers.values())), labels)
    own = confidence(logits, labels)
    kinds = {"relearned": noise.support, "neighbours": shares, **({} if views is None else {"views": views})}
    weight = sum(WEIGHTS[name] for name in kinds)
    gap = own - sum(WEIGHTS[name] / weight * _of(labels, said) for name, said in kinds.items())
    wrong = noise.replaced(labels)
    fitted = predicted(margin(logits, labels))
    suggested = noise.support.argmax(1)
    return Judged(
        noise,
        own,
        gap.clamp(0, 1),
        gap,
        noise.p_values(labels),
        wrong,
        suggested,
        _standings(fitted, suggested == labels, wrong),
        _order(gap.clamp(0, 1), wrong),
    )


def _of(labels: Tensor, said: Tensor) -> Tensor:
    """`(N,)` float64: the probability of each label, of `said` `(N, classes)`."""
    return said.gather(1, labels[:, None]).squeeze(1).double()


def joined(answers: list[Tensor]) -> Tensor:
    """`(N, classes)` logarithm of the mean probability."""
    mean = torch.stack(answers).mean(0)
    return ((mean + FLOOR) / (1 + FLOOR * mean.shape[1])).log()


def _order(estimate: Tensor, wrong: Tensor) -> Tensor:
    """Rows by estimate, then by the probability that the label is wrong, then as they came; the largest first."""
    second = (-wrong).argsort(stable=True)
    return second[(-estimate[second]).argsort(stable=True)]


def _standings(fitted: Tensor, supported: Tensor, wrong: Tensor) -> tuple[Standing, ...]:
    """What each label is to the model; memorized ones are called up to a false discovery rate (Efron 2008)."""
    rows = fitted.nonzero().flatten()
    rows = rows[(-wrong[rows]).argsort(stable=True)]
    false = (1 - wrong[rows]).cumsum(0) / torch.arange(1, len(rows) + 1)
    called = torch.zeros(len(fitted), dtype=torch.bool)
    called[rows[: int((false <= FALSE_DISCOVERIES).sum())]] = True
    found = []
    for memorized, fits, agrees, odds in zip(
        called.tolist(), fitted.tolist(), supported.tolist(), wrong.tolist(), strict=True
    ):
        if memorized:
            found.append(Standing.MEMORIZED)
        elif fits and agrees:
            found.append(Standing.LEARNED)
        elif not fits and odds >= WRONG:
            found.append(Standing.RESISTED)
        else:
            found.append(Standing.UNDECIDED)
    return tuple(found)
