"""Are these checkpoints the model's own past? A run's checkpoints lead to where it ended, in weights and in loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memaudit.checkpoints.misfit import STATISTICS
from memaudit.intervals import mcnemar
from memaudit.network.states import State
from memaudit.text import clean

# A later checkpoint may be this much farther from the model than the one before it.
SLACK = 1.02
# The cosine at a checkpoint between the way back to the one before and the way on to the model: a path goes on (0 and
# below), three runs from one start or from three form a triangle of equal sides (0.5).
TURN = 0.4
# The mean cosine of the last checkpoint's weights and the model's: networks drawn apart stay at 0, give or take
# one over the root of the number of weights.
RELATED = 0.02
# One-sided exact test on the examples whose loss is lower, or higher, at a checkpoint than at the model.
LOSS_P = 0.01


def stray(states: Sequence[State], final: State) -> str:
    """Why `states`, earliest first, are not the way to `final`; empty where they are, or are too few to tell.

    Distances are between trained weights, each tensor relative to its size in the model.
    """
    if not states:
        return ""
    names = [n for n, t in final.tensors.items() if t.is_floating_point() and not n.endswith(STATISTICS)]
    scale = {n: float(final.tensors[n].double().square().sum()) + 1e-12 for n in names}

    def product(a: State, b: State, origin: State) -> float:
        """The inner product of the ways from `origin` to `a` and to `b`."""
        return sum(_product(a.tensors[n], b.tensors[n], origin.tensors[n]) / scale[n] for n in names)

    shared = all(n in state.tensors for state in states for n in names)
    if not shared:
        return ""
    if not _related(states[-1], final):
        return f"{clean(states[-1].label)} has no weights in common with the model"
    far = [product(state, state, final) ** 0.5 for state in states]
    for before, state, d_before, d_state in zip(states, states[1:], far, far[1:], strict=False):
        if d_state > d_before * SLACK or d_state >= far[0]:
            return f"{clean(state.label)} is no nearer to the model than {clean(before.label)}"
        back, on = product(before, before, state) ** 0.5, product(final, final, state) ** 0.5
        if back and on and product(before, final, state) > TURN * back * on:
            return f"{clean(state.label)} does not lie on the way from {clean(before.label)} to the model"
    return ""


def uphill(states: Sequence[State], losses: Sequence[Tensor]) -> str:
    """Which of `states` fits the examples better than the model, so that no training led from it; empty if none does.

    The mean and most of the examples must say so: on examples it was not trained on, a network that grows too sure of
    itself has a growing mean loss, while most of the single losses fall.

    Args:
        losses: `(n,)` of the same examples at each of the states, and last at the model.
    """
    *earlier, final = losses
    for state, own in zip(states, earlier, strict=True):
        wins, defeats = int((own < final).sum()), int((own > final).sum())
        if float(own.mean()) < float(final.mean()) and wins + defeats and mcnemar(wins, defeats) < LOSS_P:
            means = f"mean loss {float(own.mean()):.3f}, the model's {float(final.mean()):.3f}"
            return f"{clean(state.label)} fits the examples better than the model ({means})"
    return ""


def _related(state: State, final: State) -> bool:
    """Whether the matrices and kernels of both lean the same way more than those of two networks drawn apart."""
    names = [n for n, t in final.tensors.items() if t.dim() > 1]
    pairs = [(state.tensors[n].double().flatten(), final.tensors[n].double().flatten()) for n in names]
    count = sum(len(t) for _, t in pairs)
    if not count:
        return True
    cosines = [float(a @ b) / (float(a.norm() * b.norm()) or 1.0) for a, b in pairs]
    mean = sum(c * len(t) for c, (_, t) in zip(cosines, pairs, strict=True)) / count
    return bool(mean > RELATED + 3 / count**0.5)


def _product(a: Tensor, b: Tensor, origin: Tensor) -> float:
    start = origin.double()
    return float(((a.double() - start) * (b.double() - start)).sum())
