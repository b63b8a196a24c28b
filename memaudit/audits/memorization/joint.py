"""How the parts of an estimate join to one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memaudit.audits.memorization.parts import EQUAL, Part

# The estimate that parts join to; by name, as reports print it.
JOINT = "estimate"
# What a part counts beside the others where all tell changed labels alike.
WEIGHTS: Mapping[str, float] = {"relearned": 1.0, "views": 1.0, "neighbours": 0.25, "along training": 0.5}


def weights_of(parts: Sequence[Part], other: Sequence[Tensor]) -> Tensor:
    """`(parts,)`, summing to 1: what each part counts, less where it cannot tell changed labels from given ones.

    Args:
        other: per part `(R,)`, the calibration examples' scores under changed labels.
    """
    prior = torch.tensor([WEIGHTS.get(part.name, 1.0) for part in parts], dtype=torch.float64)
    told = torch.tensor(
        [discrimination(scores, p.calibration.own) for p, scores in zip(parts, other, strict=True)], dtype=torch.float64
    )
    weights = prior * told
    return weights / weights.sum() if float(weights.sum()) > 0 else prior / prior.sum()


def discrimination(other: Tensor, own: Tensor) -> float:
    """2 AUROC - 1 of `other` `(m,)` against `own` `(n,)`, at least 0: 0 where neither is higher on the whole."""
    ordered, asked = own.double().sort().values, other.double()
    below = torch.searchsorted(ordered, asked - EQUAL) + torch.searchsorted(ordered, asked + EQUAL)
    return max(0.0, float(below.double().mean()) / max(1, len(own)) - 1)


def join(parts: Sequence[Part], weights: Tensor) -> Part:
    """Their weighted mean, for the examples in question and for the clean ones alike."""
    clean = parts[0].calibration
    own, given = (mean([getattr(p.calibration, name) for p in parts], weights) for name in ("own", "given"))
    unsupported = mean([p.unsupported for p in parts], weights)
    return Part(JOINT, unsupported, parts[0].doubt, replace(clean, own=own, given=given))


def mean(scores: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean of `scores`, one tensor `(n,)` a part, in float64; `weights` `(parts,)` sum to 1."""
    return (torch.stack([s.double() for s in scores], -1) @ weights).clamp(0, 1)
