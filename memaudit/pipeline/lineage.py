"""Are these checkpoints the model's own past? Told from the weights: a run's checkpoints lead to where it ended."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memaudit.checkpoints.misfit import STATISTICS
from memaudit.network.states import State
from memaudit.text import clean

# A later checkpoint may be this much farther from the model than the one before it.
SLACK = 1.02
# The cosine at a checkpoint between the way back to the one before and the way on to the model: a path goes on (0 and
# below), three runs from one start or from three form a triangle of equal sides (0.5).
TURN = 0.4


def stray(states: Sequence[State], final: State) -> str:
    """Why `states`, earliest first, are not the way to `final`; empty where they are, or are too few to tell.

    Distances are between trained weights, each tensor relative to its size in the model.
    """
    if len(states) < 2:
        return ""
    names = [n for n, t in final.tensors.items() if t.is_floating_point() and not n.endswith(STATISTICS)]
    scale = {n: float(final.tensors[n].double().square().sum()) + 1e-12 for n in names}

    def product(a: State, b: State, origin: State) -> float:
        """The inner product of the ways from `origin` to `a` and to `b`."""
        return sum(_product(a.tensors[n], b.tensors[n], origin.tensors[n]) / scale[n] for n in names)

    shared = all(n in state.tensors for state in states for n in names)
    if not shared:
        return ""
    far = [product(state, state, final) ** 0.5 for state in states]
    for before, state, d_before, d_state in zip(states, states[1:], far, far[1:], strict=False):
        if d_state > d_before * SLACK or d_state >= far[0]:
            return f"{clean(state.label)} is no nearer to the model than {clean(before.label)}"
        back, on = product(before, before, state) ** 0.5, product(final, final, state) ** 0.5
        if back and on and product(before, final, state) > TURN * back * on:
            return f"{clean(state.label)} does not lie on the way from {clean(before.label)} to the model"
    return ""


def _product(a: Tensor, b: Tensor, origin: Tensor) -> float:
    start = origin.double()
    return float(((a.double() - start) * (b.double() - start)).sum())
