"""From scores to what they say: every test's curve and intervals, one joint p-value, slices, and each example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memaudit.audits.membership import attacks
from memaudit.audits.membership.matching import Compared
from memaudit.data import finding_id
from memaudit.data.columns import Group, groups
from memaudit.engine.answers import prediction
from memaudit.findings import Attack, Example, Membership, MembershipSlice, Rule, Scored
from memaudit.intervals import separation
from memaudit.intervals.permutation import DEALS, LEVEL, UNLIKE, Tested, permutation_test
from memaudit.numbers import tidy

# Fewer flagged or unseen examples than this are no group.
SMALL = 10
# The false-positive rate that slices and single examples are judged at.
AT = 0.05

Values = NDArray[np.float64]


def scores_of(
    logits: Tensor,
    labels: Tensor,
    *,
    seen: Tensor | None = None,
    out: Tensor | None = None,
    population: tuple[Tensor, Tensor] | None = None,
    estimate: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every test that what is at hand allows, by name: `(n,)`, higher speaks for having been trained on.

    Args:
        logits: `(n, classes)` by the model under test; labels: `(n,)` that are asked for.
        seen: log-odds `(n,)` by that model, averaged over views; out: `(M, n)` likewise by models without the flagged.
        population: probabilities `(Z,)` and `(M, Z)` of reference examples by the model and by those without.
        estimate: `(n,)`, the audit's own.
    """
    scores = {"loss": attacks.by_loss(logits, labels), "log-odds": attacks.scaled(logits, labels)}
    if out is not None and seen is not None:
        scores["calibrated log-odds"] = attacks.calibrated(attacks.scaled(logits, labels), out)
        scores["LiRA"] = attacks.lira(seen, out)
        if population is not None:
            own = attacks.scaled(logits, labels).sigmoid()
            scores["RMIA"] = attacks.rmia(own, out.sigmoid(), *population)
    if estimate is not None:
        scores["own estimate"] = estimate
    return scores


def membership(
    scores: Mapping[str, Tensor],
    compared: Compared,
    flagged: Sequence[Example],
    unseen: Sequence[Example],
    logits: Tensor,
    class_names: Sequence[str],
    seed: int,
    deals: int = DEALS,
) -> Membership:
    """What `scores` say of the examples compared.

    Args:
        scores: by test, `(n,)` of the flagged rows of `compared`, then of the unseen ones.
        flagged, unseen: those examples, in the same order.
        logits: `(len(flagged), classes)`.
    """
    values = {name: score.double().numpy() for name, score in scores.items()}
    member = np.arange(len(compared.kinds)) < len(flagged)
    kinds = sorted(set(compared.kinds))
    place = {kind: number for number, kind in enumerate(kinds)}
    kind = np.array([place[k] for k in compared.kinds], dtype=np.int64)
    tested = permutation_test(values, member, kind, seed, deals)
    found = [_attack(name, score[member], score[~member], tested) for name, score in values.items()]
    strongest = min(found, key=lambda a: (a.p_value, -a.auc)).name
    best = values[strongest]
    bar = separation.at_level(best[member], best[~member], AT).threshold
    return Membership(
        members=len(flagged),
        others=len(unseen),
        left_out=compared.left_out,
        undeclared=sum(example.true_label is None for example in flagged),
        relabelled=compared.relabelled,
        kinds=len(kinds),
        found=tested.p_value <= LEVEL,
        p_value=tidy(tested.p_value),
        p_below=tidy(tested.below),
        unlike=tested.p_value > LEVEL and tested.below <= UNLIKE,
        strongest=strongest,
        clear=tested.clear,
        attacks=found,
        slices=sorted(
            _slices(best, kind, flagged, unseen, class_names), key=lambda s: (s.small, -s.auc, s.by, s.value)
        ),
        examples=[
            Scored(
                id=finding_id(example.id, example.label),
                example=example,
                before=prediction(logits[row], example.label),
                scores={name: tidy(float(score[row])) for name, score in values.items()},
                share=tidy(float((best[~member] >= best[row]).mean())),
                traced=bool(best[row] > bar),
            )
            for row, example in enumerate(flagged)
        ],
    )


def _attack(name: str, members: Values, others: Values, tested: Tested) -> Attack:
    area, area_low, area_high = separation.auc(members, others)
    gap, gap_low, gap_high = separation.advantage(members, others)
    rules = [separation.at_level(members, others, level) for level in separation.LEVELS]
    return Attack(
        name=name,
        auc=tidy(area),
        auc_low=tidy(area_low),
        auc_high=tidy(area_high),
        advantage=tidy(gap),
        advantage_low=tidy(gap_low),
        advantage_high=tidy(gap_high),
        epsilon=tidy(separation.epsilon(rules)),
        p_value=tidy(tested.by_score[name]),
        rules=[_rule(rule) for rule in rules],
    )


def _rule(rule: separation.Operating) -> Rule:
    smallest = separation.detectable(rule.members, rule.level)
    return Rule(
        level=rule.level,
        threshold=tidy(rule.threshold),
        hits=rule.hits,
        rate=tidy(rule.rate),
        low=tidy(rule.low),
        high=tidy(rule.high),
        alarms=rule.alarms,
        alarms_high=tidy(rule.alarms_high),
        resolved=rule.resolved,
        detectable=None if smallest is None else tidy(smallest),
    )


def _slices(
    best: Values, kind: NDArray[np.int64], flagged: Sequence[Example], unseen: Sequence[Example], names: Sequence[str]
) -> Iterator[MembershipSlice]:
    """By label and by each column of the flagged manifest.

    Flagged examples are compared with unseen ones of their kinds, and of their own value where those declare one.
    """
    declared = {column for example in unseen for column in example.columns}
    labels = dict.fromkeys(example.label for example in flagged)
    for group in (*(_labelled(one, names) for one in labels), *groups(flagged)):
        rows = [row for row, example in enumerate(flagged) if group.holds(example)]
        inside = set(kind[rows].tolist())
        against = [
            len(flagged) + row
            for row, example in enumerate(unseen)
            if kind[len(flagged) + row] in inside and (group.by not in declared or group.holds(example))
        ]
        if 0 < len(rows) < len(flagged) and against:
            yield _slice(group.by, group.value, best[rows], best[against])


def _labelled(label: int, names: Sequence[str]) -> Group:
    return Group("label", names[label] if label < len(names) else str(label), lambda example: example.label == label)


def _slice(by: str, value: str, members: Values, others: Values) -> MembershipSlice:
    area, low, high = separation.auc(members, others)
    rule = separation.at_level(members, others, AT)
    return MembershipSlice(
        by=by,
        value=value,
        members=len(members),
        others=len(others),
        auc=tidy(area),
        auc_low=tidy(low),
        auc_high=tidy(high),
        hits=rule.hits,
        rate=tidy(rule.rate),
        low=tidy(rule.low),
        high=tidy(rule.high),
        small=min(len(members), len(others)) < SMALL,
    )
