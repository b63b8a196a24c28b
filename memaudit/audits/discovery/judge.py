"""From what the others say of each label to an estimate of memorization, and to what the label is to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memaudit.audits.discovery.noise import Noise, fit_noise
from memaudit.data.wide import Made, Sliced, own, slices
from memaudit.engine.answers import Answers, predicted
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
        support: of the class that has the most.
        estimate: 1 where the model gives the label, less its support without the example (Feldman and Zhang 2020), in
            [0, 1]. What is learned by heart is given with less confidence, so that does not enter.
        gap: the same, negative where the model does not give the label.
        unsupported: 1 - the label's support without the example, whether the model gives it or not: what finds wrong
            labels, also those that the model resisted.
        p_value: the chance that a fitting label has as little support.
        wrong: the probability that the label was replaced.
        suggested: the class with the most support.
        order: rows, the most memorized first.
    """

    noise: Noise
    estimate: Tensor
    gap: Tensor
    unsupported: Tensor
    p_value: Tensor
    wrong: Tensor
    suggested: Tensor
    support: Tensor
    standings: tuple[Standing, ...]
    order: Tensor


def teachers(shares: Sliced, labels: Tensor) -> Tensor:
    """`(N,)` bool: examples whose labels may teach others: no class has more of their neighbours' votes.

    Edited nearest neighbours (Wilson 1972). The first of two passes; the second asks what those learned again.
    """
    return own(shares, labels) >= _most(shares)[0] - 1e-6


def judge(
    said: Answers, labels: Tensor, answers: Mapping[str, Sliced], shares: Sliced, views: Sliced | None = None
) -> Judged:
    """The result of all evidence.

    Neighbours and views see features that may hold the label, so they help to put the examples in order and no more:
    how many labels are wrong, and which, rests on the relearned layers alone.

    Args:
        said: by the model as it is.
        answers: by name `(N, classes)` probabilities of each class, from layers that never saw the example.
        shares: `(N, classes)` of the neighbours' votes.
        views: `(N, classes)` probabilities of each class for changed copies; None: they were not asked.
    """
    taught = list(answers.values())
    noise = fit_noise(Made(taught[0].shape, lambda rows: joined([one[rows] for one in taught])), labels)
    fitted = predicted(said.margins)
    kinds = [noise.support, shares, *([] if views is None else [views])]
    support = agreed(kinds, labels)
    gap = fitted.double() - support
    wrong = noise.replaced()
    most, suggested = _most(noise.support)
    return Judged(
        noise,
        gap.clamp(0, 1),
        gap,
        1 - support,
        noise.p_values(),
        wrong,
        suggested,
        most,
        _standings(fitted, suggested == labels, wrong),
        _order(gap.clamp(0, 1), wrong),
    )


def joined(answers: list[Tensor]) -> Tensor:
    """`(N, classes)` logarithm of the mean probability."""
    mean = torch.stack(answers).mean(0)
    return ((mean + FLOOR) / (1 + FLOOR * mean.shape[1])).log()


def agreed(kinds: Sequence[Sliced], labels: Tensor) -> Tensor:
    """`(N,)`: each label's probability by the geometric mean of what each kind of evidence says (a product of experts).

    Means took what one kind is merely unsure of for memorized. Compared with networks trained without each example
    (other images and weights than those of the benchmarks), on digits and on CIFAR-10 images: correlation 0.93 and
    0.74, with means 0.83 and 0.71; no other weights did better on both.

    Args:
        kinds: `(N, classes)` probabilities each.
        labels: `(N,)`.
    """
    found = []
    for rows in slices(*kinds[0].shape):
        mean = torch.stack([joined([one[rows]]) for one in kinds]).mean(0)
        found.append(mean.double().softmax(1).gather(1, labels[rows, None]).squeeze(1))
    return torch.cat(found)


def _most(numbers: Sliced) -> tuple[Tensor, Tensor]:
    """`(N,)` the largest number of each row, and its column; the first of equal ones."""
    parts = [numbers[rows].max(1) for rows in slices(*numbers.shape)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


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
