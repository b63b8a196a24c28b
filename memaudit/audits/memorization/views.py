"""Views: is a label still given when its image is moved, mirrored or zoomed into, as those of clean examples are?

What was learned from many examples holds for the views of one; what was learned by heart holds at one point. Label-only
membership inference (Choquette-Choo et al. 2021) and the loss's curvature in the input (Garg and Roy 2023) rest on the
same. Nothing is trained, so it is cheap beside relearning, and finds other labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from memaudit.data.wide import NUMBERS, Sliced, Wide, add, divide, own, wide
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import KEPT, TRIED, VIEWS, View, as_is, asked, images


def each_asked(
    evaluator: Evaluator, panel: Panel, view: Callable[[Tensor], Tensor] = as_is
) -> Iterator[tuple[slice, Tensor]]:
    """As `asked`, in parts: the places in the panel, and what is said of them."""
    step = evaluator.batch_size * max(1, NUMBERS // (evaluator.batch_size * evaluator.adapter.num_classes))
    for start in range(0, len(panel), step):
        rows = slice(start, min(start + step, len(panel)))
        yield rows, asked(evaluator, Panel(panel.examples, panel.rows[rows]), view)


def seen(evaluator: Evaluator, panels: Sequence[Panel], labels: Tensor, known: Tensor) -> tuple[list[View], list[Wide]]:
    """Per panel `(len(panel), classes)`: the mean probabilities over the views under which clean labels hold.

    Args:
        panels: the last holds clean examples, with `labels` `(n,)`; `known` `(n,)` bool: the network predicts them.

    Returns:
        The views, and the probabilities; nothing where the inputs are no images, or no view shows the same classes.
    """
    if not images(evaluator, panels[-1]):
        return [], []
    # The clean labels that decide whether a view is asked come first; the others are asked of no view in vain.
    order = known.int().argsort(descending=True, stable=True)
    tried, rest = order.tensor_split([min(TRIED, int(known.sum()))])
    total: list[Wide] = []
    used: list[View] = []
    for view in VIEWS:
        first = asked(evaluator, panels[-1].at(tried), view)
        if not float((first.argmax(1) == labels[tried]).float().mean()) >= KEPT:
            evaluator.advance(sum(map(len, panels)) - len(tried))
            continue
        used.append(view)
        total = total or [wide(len(panel), first.shape[1]) for panel in panels]
        add(total[-1], tried, first)
        for rows, said in each_asked(evaluator, panels[-1].at(rest), view):
            add(total[-1], rest[rows], said)
        for panel, sums in zip(panels[:-1], total, strict=False):
            for rows, said in each_asked(evaluator, panel, view):
                add(sums, rows, said)
    for sums in total:
        divide(sums, len(used))
    return used, total


def against(said: Sliced, labels: Tensor) -> Tensor:
    """1 - the probability of `labels` `(n,)`, by `said` `(n, classes)`."""
    return 1 - own(said, labels)
