"""Is the order of the classes the one the network was trained with? A wrong one shifts labels and says nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memaudit.data.classes import in_order
from memaudit.errors import PremiseBroken
from memaudit.intervals import mcnemar

# Below this, that another order fits better is no accident.
CHANCE = 0.01


def check_class_order(names: Sequence[str], predicted: Tensor, labels: Tensor) -> None:
    """Raise where the same folders in another usual order agree with the network decisively better.

    Args:
        names: class names by label, as the audit has them.
        predicted: `(n,)` labels the network gives the reference images.
        labels: `(n,)` labels the reference has.

    Raises:
        PremiseBroken: names both orders, with the accuracy of each.
    """
    if (found := other_order(names, predicted, labels)) is not None:
        raise found[0]


def other_order(names: Sequence[str], predicted: Tensor, labels: Tensor) -> tuple[PremiseBroken, Tensor] | None:
    """What `check_class_order` raises, and which images `(n,)` the other order explains."""
    given = tuple(names)
    if len(set(given)) != len(given) or int(labels.max()) >= len(given):
        return _other_mapping(predicted, labels)
    right = predicted == labels
    for order in ("natural", "lexical"):
        other = in_order(given, order)
        if other == given:
            continue
        place = {name: label for label, name in enumerate(other)}
        moved = labels.new_tensor([place[name] for name in given])[labels]
        fits = predicted == moved
        wins, losses = int((fits & ~right).sum()), int((right & ~fits).sum())
        if wins > losses and mcnemar(wins, losses) < CHANCE:
            wrong = PremiseBroken(
                f"the class order is wrong (MEM902): reference accuracy is {float(right.float().mean()):.3f}, and "
                f"{float(fits.float().mean()):.3f} with the classes in {order} order",
                hint=f"Give the order the network was trained with: --class-order {order}, or a file of class names.",
            )
            return wrong, fits
    return _other_mapping(predicted, labels)


def _other_mapping(predicted: Tensor, labels: Tensor) -> tuple[PremiseBroken, Tensor] | None:
    """As `other_order` where every label stands for another class: found on half of the rows, tested on the other."""
    half, rest = slice(None, None, 2), slice(1, None, 2)
    mapping = {label: int(predicted[half][labels[half] == label].mode().values) for label in set(labels[half].tolist())}
    if len(set(mapping.values())) < len(mapping) or all(a == b for a, b in mapping.items()):
        return None
    moved = labels.clone()
    for label, other in mapping.items():
        moved[labels == label] = other
    right, fits = (predicted == labels)[rest], (predicted == moved)[rest]
    wins, losses = int((fits & ~right).sum()), int((right & ~fits).sum())
    if wins <= losses or mcnemar(wins, losses) >= CHANCE:
        return None
    shown = ", ".join(f"{a} is {b}" for a, b in sorted(mapping.items()) if a != b)
    wrong = PremiseBroken(
        f"the class order is wrong (MEM902): reference accuracy is {float(right.float().mean()):.3f}, and "
        f"{float(fits.float().mean()):.3f} with other labels for the same classes ({shown})",
        hint="Give the classes in the order the network was trained with, one per line: --class-order FILE.",
    )
    return wrong, predicted == moved
