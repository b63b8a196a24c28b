"""Views: is a label still given when its image is moved, mirrored or zoomed into, as those of clean examples are?

What was learned from many examples holds for the views of one; what was learned by heart holds at one point. Label-only
membership inference (Choquette-Choo et al. 2021) and the loss's curvature in the input (Garg and Roy 2023) rest on the
same. Nothing is trained, so it is cheap beside relearning, and finds other labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.data.wide import NUMBERS, Sliced, Wide, add, divide, own, wide
from memaudit.engine.evaluator import Evaluator, Panel, placed

# A view is used where this share of the clean labels that the network predicts stays predicted: digits are not
# mirrored. Training images that were never mirrored keep 0.75 of them on CIFAR-10.
KEPT = 0.5
# Whether mirror images show the same classes is asked of so many.
TRIED = 512


@dataclass(frozen=True)
class View:
    """One change of an image: part of it is shown, at the old size.

    Attributes:
        down, right: how far the part's middle is from the image's, in shares of half a side; edges are repeated.
        zoom: the part's side, as a share of the image's.
        mirror: left and right change places.
    """

    down: float = 0.0
    right: float = 0.0
    zoom: float = 1.0
    mirror: bool = False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images `(n, channels, height, width)`, changed."""
        across = -self.zoom if self.mirror else self.zoom
        theta = torch.tensor(
            [[across, 0.0, self.right], [0.0, self.zoom, self.down]], dtype=inputs.dtype, device=inputs.device
        )
        grid = F.affine_grid(theta.expand(len(inputs), 2, 3), list(inputs.shape), align_corners=False)
        return F.grid_sample(inputs, grid, padding_mode="border", align_corners=False)


# Two pixels of 32, and the corners' 26. Chosen on a ResNet-10t and a ResNet-9 (CIFAR-10) that are not among the
# benchmarks: AUROC of changed against true labels 0.916 and 0.945; noise, contrast, blur, parts cut out and images
# mixed with others gave 0.59 to 0.79 alone and less than these together.
STEP, ZOOM = 1 / 8, 26 / 32
VIEWS = (
    View(mirror=True),
    *(View(down=STEP * a, right=STEP * b) for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))),
    *(View(down=STEP * a, right=STEP * b, mirror=True) for a, b in ((-1, -1), (1, 1), (1, -1), (-1, 1))),
    *(View(down=(1 - ZOOM) * a, right=(1 - ZOOM) * b, zoom=ZOOM) for a, b in ((-1, -1), (1, 1), (-1, 1), (1, -1))),
)


def as_is(inputs: Tensor) -> Tensor:
    """The inputs themselves, of any shape."""
    return inputs


def flipped(inputs: Tensor) -> Tensor:
    """Images `(n, channels, height, width)`, left and right exchanged, no value interpolated."""
    return inputs.flip(-1)


@dataclass(frozen=True)
class Asked:
    """A pass: softmax probabilities `(n, classes)` of the inputs, or of one view of them, on the CPU."""

    view: Callable[[Tensor], Tensor] = as_is

    def __call__(self, network: Adapter, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return network.forward(self.view(inputs)).softmax(1).float().cpu()


def asked(evaluator: Evaluator, panel: Panel, view: Callable[[Tensor], Tensor] = as_is) -> Tensor:
    """Softmax probabilities `(len(panel), classes)`, float32, of a panel's inputs or of one view of them."""
    if not len(panel):
        return torch.zeros(0, 1)
    return placed(evaluator.parts(panel.examples, panel.rows, Asked(view)), len(panel))


def mirrored(evaluator: Evaluator, panel: Panel) -> bool:
    """Whether mirror images show the same classes, as far as the network can tell of `TRIED` clean examples."""
    if evaluator.inputs(panel.examples, panel.rows[:1]).dim() != 4:
        return False
    few = Panel(panel.examples, panel.rows[:: -(-len(panel) // TRIED)])
    same = asked(evaluator, few, flipped).argmax(1) == panel.examples.labels[list(few.rows)]
    return float(same.float().mean()) >= KEPT


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
    if evaluator.inputs(panels[-1].examples, panels[-1].rows[:1]).dim() != 4:
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
