"""What the evidence can find: changed labels of clean examples, and how many of them it calls."""

from __future__ import annotations

import torch
from torch import Tensor


def other_labels(labels: Tensor, classes: int, generator: torch.Generator, paired: bool = False) -> Tensor:
    """`(N,)`: for each of `labels` another class, drawn.

    Args:
        paired: classes are two a question (`adapters.heads`): the other answer to the same one.
    """
    if paired:
        return labels ^ 1
    if classes < 2:
        return labels
    return (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
