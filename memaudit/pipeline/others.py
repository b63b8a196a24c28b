"""Models that were trained without the flagged examples: checked as the audited one is, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memaudit.audits.membership.attacks import scaled
from memaudit.data import ExampleSet
from memaudit.engine.answers import margin, predicted, share
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


def checked(others: Sequence[Other], evaluator: Evaluator, reference: ExampleSet) -> list[Other]:
    """`others`, each with what a report says of it: it does on the reference what it was trained for.

    Raises:
        PremiseBroken, ModelRejected: one does not; the message begins with its name.
        UsageError: one has other classes.
    """
    return [replace(other, model=_checked(other, evaluator, reference)) for other in others]


def _checked(other: Other, evaluator: Evaluator, reference: ExampleSet) -> OtherModel:
    own, classes = other.among("reference", reference), evaluator.adapter.num_classes
    with other.running(evaluator.device, evaluator.batch_size) as one:
        if one.adapter.num_classes != classes:
            found = one.adapter.num_classes
            raise UsageError(f"--without {clean(other.name)} has {found} classes, the model {classes}: another task")
        try:
            check_network(one, own)
            logits = one.logits(own)
            check_accuracy(logits, own.labels, own.class_names)
        except MemauditError as error:
            raise type(error)(f"--without {clean(other.name)}: {error.message}", hint=error.hint) from None
    right = share(int(predicted(margin(logits, own.labels)).sum()), len(own))
    return OtherModel(
        path=clean(other.name),
        sha256=other.sha256,
        architecture=other.adapter.architecture,
        accuracy=right.rate or 0.0,
        low=right.low or 0.0,
        high=right.high or 0.0,
    )


def asked(
    others: Sequence[Other], evaluator: Evaluator, parts: Sequence[tuple[str, ExampleSet]], reference: ExampleSet
) -> Said:
    """Check `others`, and ask each for the labels of `parts` and of the reference.

    Args:
        parts: examples with the name of the set they are from; their labels may differ from that set's.
    """
    odds, population = [], []
    known = checked(others, evaluator, reference)
    for other in known:
        with other.running(evaluator.device, evaluator.batch_size) as one:
            own = [other.among(name, examples) for name, examples in parts]
            odds.append(torch.cat([scaled(viewed(one, examples), examples.labels).mean(0) for examples in own]))
            theirs = other.among("reference", reference)
            population.append(scaled(one.logits(theirs), theirs.labels).sigmoid())
    return Said([other.model for other in known if other.model], torch.stack(odds), torch.stack(population))
