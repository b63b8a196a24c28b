"""Models that were trained without the flagged examples: checked as the audited one is, and asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memaudit.audits.membership.attacks import scaled
from memaudit.data import ExampleSet
from memaudit.engine.answers import Answers, predicted, share
from memaudit.engine.evaluator import Evaluator
from memaudit.engine.others import Other, viewed
from memaudit.errors import MemauditError, UsageError
from memaudit.findings import OtherModel
from memaudit.pipeline.premises import check_accuracy, check_network
from memaudit.text import clean


@dataclass(frozen=True)
class Said:
    """What models without the flagged examples say.

    Attributes:
        models: who they are.
        odds: log-odds `(M, N)` of the labels asked for, averaged over views.
        population: probabilities `(M, Z)` of the reference's labels.
    """

    models: list[OtherModel]
    odds: Tensor
    population: Tensor


def check(others: Sequence[Other], evaluator: Evaluator, reference: ExampleSet) -> None:
    """Refuse what cannot be asked, before anything is recorded.

    Raises:
        PremiseBroken, ModelRejected: a premise of one does not hold; the message begins with its name.
        UsageError: one has other classes.
    """
    classes = evaluator.adapter.num_classes
    for other in others:
        with other.running(evaluator) as one, _named(other):
            if one.adapter.num_classes != classes:
                raise UsageError(f"{one.adapter.num_classes} classes, the model {classes}: another task")
            check_network(one, other.among("reference", reference))


def known(others: Sequence[Other], evaluator: Evaluator, reference: ExampleSet) -> list[Other]:
    """`others`, each with what a report says of it: it does on the reference what it was trained for.

    Raises:
        PremiseBroken: one does not; the message begins with its name.
    """
    return [replace(other, model=_known(other, evaluator, reference)) for other in others]


def _known(other: Other, evaluator: Evaluator, reference: ExampleSet) -> OtherModel:
    own = other.among("reference", reference)
    with other.running(evaluator) as one, _named(other):
        said = Answers.of(one.logits(own), own.labels)
        check_accuracy(said, own.labels, own.class_names)
    right = share(int(predicted(said.margins).sum()), len(own))
    return OtherModel(
        path=clean(other.name),
        sha256=other.sha256,
        architecture=other.adapter.architecture,
        accuracy=right.rate or 0.0,
        low=right.low or 0.0,
        high=right.high or 0.0,
    )


@contextmanager
def _named(other: Other) -> Iterator[None]:
    """What the body raises begins with the name of the model."""
    try:
        yield
    except MemauditError as error:
        raise type(error)(f"--without {clean(other.name)}: {error.message}", hint=error.hint) from None


def asked(
    others: Sequence[Other], evaluator: Evaluator, parts: Sequence[tuple[str, ExampleSet]], reference: ExampleSet
) -> Said:
    """Check `others`, and ask each for the labels of `parts` and of the reference.

    Args:
        parts: examples with the name of the set they are from; their labels may differ from that set's.
    """
    odds, population = [], []
    check(others, evaluator, reference)
    sound = known(others, evaluator, reference)
    for other in sound:
        with other.running(evaluator) as one:
            own = [other.among(name, examples) for name, examples in parts]
            odds.append(torch.cat([scaled(viewed(one, examples), examples.labels).mean(0) for examples in own]))
            theirs = other.among("reference", reference)
            population.append(scaled(one.logits(theirs), theirs.labels).sigmoid())
    return Said([other.model for other in sound if other.model], torch.stack(odds), torch.stack(population))
