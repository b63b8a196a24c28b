"""How the parts of an estimate join to one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memaudit.audits.memorization.parts import Part

# The estimate that parts join to; by name, as reports print it.
JOINT = "estimate"
# What a part counts beside the others.
WEIGHTS: Mapping[str, float] = {"relearned": 1.0, "neighbours": 0.25, "along training": 0.5}


def join(parts: Sequence[Part]) -> Part:
    """Their weighted mean, for the examples in question and for the clean ones alike, and fold by fold."""
    folded = next((p for p in parts if p.by_fold is not None), None)
    by_fold = fold = None
    if folded is not None and folded.by_fold is not None:
        count, fold = len(folded.by_fold), folded.fold
        by_fold = mean(parts, [p.scores.expand(count, -1) if p.by_fold is None else p.by_fold for p in parts])
    scores = mean(parts, [p.scores for p in parts])
    return Part(JOINT, scores, mean(parts, [p.calibration for p in parts]), by_fold, fold)


def mean(parts: Sequence[Part], scores: Sequence[Tensor]) -> Tensor:
    """The weighted mean of `scores`, one tensor a part, all of one shape."""
    weights = torch.tensor([WEIGHTS.get(part.name, 1.0) for part in parts], dtype=torch.float64)
    joined = torch.stack([s.double() for s in scores], -1) @ (weights / weights.sum())
    return joined.clamp(0, 1)
