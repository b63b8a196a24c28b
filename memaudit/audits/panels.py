"""Which rows an audit runs: fitted flagged examples, clean ones matched to them, others."""

from __future__ import annotations

import torch
from torch import Tensor

from memaudit.engine.answers import predicted


def matched_clean(
    margins: Tensor, labels: Tensor, reference_margins: Tensor, reference_labels: Tensor
) -> list[tuple[int, int]]:
    """Pairs `(flagged row, reference row)`: an unused fitted reference example, same label, nearest margin."""
    pairs: list[tuple[int, int]] = []
    free = predicted(reference_margins)
    for row in range(len(labels)):
        gaps = (
            (reference_margins - margins[row]).abs().masked_fill(~(free & (reference_labels == labels[row])), torch.inf)
        )
        best = int(gaps.argmin()) if len(gaps) else -1
        if best >= 0 and torch.isfinite(gaps[best]):
            free[best] = False
            pairs.append((row, best))
    return pairs
