"""When random draws have decided: stochastic curtailment.

Whether random units suppress a label as well is judged by a planned number of draws. Nearly always the first few say
what all of them would. After each round the chance that the planned number would decide otherwise is worked out from
the predictive distribution (Spiegelhalter, Freedman and Blackburn 1986, "Monitoring clinical trials: conditional or
predictive power?"), with the rates of all findings as draws of one population, as in `cost`; where it is below `DOUBT`,
drawing stops. A posterior does not depend on why drawing stopped, so its intervals hold (simulated in `tests`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.special import betaln, comb

from memaudit.audits.localize.cost import posterior, shared_rates
from memaudit.findings import RandomControl, interned
from memaudit.numbers import tidy

# Draws in the first round; each further round doubles what was drawn.
FIRST = 3
# Chance that the planned draws would decide otherwise, below which they are not made.
DOUBT = 0.01


def rounds(planned: int) -> list[range]:
    """The draws of each round: `0-2`, `3-5`, `6-9` of ten."""
    ends = [0, min(FIRST, planned)]
    while ends[-1] < planned:
        ends.append(min(planned, 2 * ends[-1]))
    return [range(a, b) for a, b in pairwise(ends) if b > a]


# Fast path; its slow twin: tests/twins.py.
def undecided(controls: Sequence[RandomControl], planned: int, most: float) -> list[bool]:
    """Which of `controls` might be decided otherwise by their planned draws.

    Args:
        most: erasures of the planned draws that still speak for the units found.
    """
    counts = [(control.erased, control.draws) for control in controls]
    kinds = tuple(sorted(Counter(counts).items()))
    if not kinds:
        return []
    chances = {kind: exceeding(kinds, kind, planned, most) for kind, _ in kinds}
    return [DOUBT < chances[count] < 1 - DOUBT for count in counts]


def exceeding(kinds: Sequence[tuple[tuple[int, int], int]], kind: tuple[int, int], planned: int, most: float) -> float:
    """Chance that more than `most` of `planned` draws suppress a label, where `kind` `(erased, draws)` was seen."""
    erased, drawn = kind
    share, a, b = posterior(kinds)
    left = planned - drawn
    a, b = a + erased, b + drawn - erased
    hits = np.array([h for h in range(left + 1) if erased + h > most])
    if not len(hits):
        return 0.0
    ways = np.log(comb(left, hits))
    likely = np.exp(ways + betaln(a[:, None] + hits, b[:, None] + left - hits) - betaln(a, b)[:, None])
    return float((share * likely.sum(1)).sum())


def with_intervals(counts: Sequence[tuple[int, int]]) -> list[RandomControl]:
    """Each `(erased, draws)` with the 95 % interval that all of them together give its rate.

    Where no draw suppressed the label, nothing shows that any would: the interval begins at 0.
    """
    rates = shared_rates(counts)
    found = []
    for erased, draws in counts:
        _, low, high = rates[erased, draws]
        found.append(
            interned(RandomControl(draws=draws, erased=erased, low=tidy(low) if erased else 0.0, high=tidy(high)))
        )
    return found
