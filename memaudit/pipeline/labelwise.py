"""Where an example has several labels at once: how well the network does on each, and on all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

from memaudit.engine.answers import predicted
from memaudit.errors import PremiseBroken
from memaudit.findings import LabelAccuracy, ReportWarning
from memaudit.intervals import wilson
from memaudit.numbers import tidy

# Half of what is there and half of what is absent is what guessing gets right; this much more is plausible, and good.
PLAUSIBLE, GOOD = 0.55, 0.65


def label_accuracies(margins: Tensor, labels: Tensor, names: Sequence[str]) -> list[LabelAccuracy]:
    """For each label that is asked for, by number.

    Args:
        margins: `(R,)` of the reference's rows, one a question.
        labels: `(R,)` classes, two a label.
        names: of the classes.
    """
    right, found = predicted(margins), []
    for label in sorted({c // 2 for c in labels.tolist()}):
        own = labels // 2 == label
        there, absent = right[own & (labels % 2 == 1)], right[own & (labels % 2 == 0)]
        hits, count = int(right[own].sum()), int(own.sum())
        low, high = wilson(hits, count)
        name = names[2 * label].rpartition(":")[0] if 2 * label < len(names) else str(label)
        found.append(
            LabelAccuracy(
                label=label,
                name=name,
                examples=count,
                positive=len(there),
                accuracy=tidy(hits / count),
                low=tidy(low),
                high=tidy(high),
                sensitivity=tidy(float(there.float().mean())) if len(there) else None,
                specificity=tidy(float(absent.float().mean())) if len(absent) else None,
            )
        )
    return found


def macro(found: Sequence[LabelAccuracy]) -> float:
    """Mean accuracy over labels, each counting the same."""
    return tidy(fmean(one.accuracy for one in found))


def check_labelwise(margins: Tensor, labels: Tensor, names: Sequence[str]) -> list[ReportWarning]:
    """The network tells what is there from what is absent; what to tell the reader of each label.

    Raises:
        PremiseBroken: it does so no better than guessing.
    """
    found = label_accuracies(margins, labels, names)
    both = [(s + t) / 2 for one in found if (s := one.sensitivity) is not None and (t := one.specificity) is not None]
    balanced = fmean(both) if both else None
    shown = "; ".join(f"{one.name} {one.accuracy:.3f}" for one in found[:10]) + ("; ..." if len(found) > 10 else "")
    if balanced is not None and balanced < PLAUSIBLE:
        raise PremiseBroken(
            f"over {len(both)} labels the network is right on {balanced:.3f} of what is there and what is absent, "
            f"near chance (0.5); accuracies: {shown}",
            hint="Check the order of the labels (--class-order), preprocessing and model.",
        )
    warnings = [
        ReportWarning(code="MEM108", message=f"reference accuracy by label, on average {macro(found):.3f}: {shown}")
    ]
    if balanced is None or balanced < GOOD:
        said = "what is there and what is absent is hardly distinguished: check the order of labels and preprocessing"
        warnings.append(ReportWarning(code="MEM104", message=said))
    return warnings
