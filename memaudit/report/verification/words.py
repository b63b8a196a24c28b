"""What a verification says in sentences; every view uses the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import MISSING, count, interval, percent
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Attack, Membership, Rule
    from memaudit.report.verified import Verification

TESTS = {
    "loss": "how well the model predicts the label (Yeom et al. 2018)",
    "log-odds": "the same as log-odds, which do not saturate (Carlini et al. 2022)",
    "calibrated log-odds": "log-odds, less what models without the example say (Watson et al. 2022)",
    "LiRA": "the same in standard deviations, over shifted views: offline likelihood ratio (Carlini et al. 2022)",
    "RMIA": "how many reference examples gain less over the models without (Zarifzadeh et al. 2024)",
    "own estimate": "the model's probability less what neighbours and relearned layers say, that do not know the label",
}
"""What each test asks."""

LIMITS = (
    "Absence of evidence is no proof of absence: a trace smaller than the one named may be there.",
    (
        "It is fair only if flagged and unseen examples come from one source and were chosen in the same way: any "
        "other difference between them looks like a trace, or hides one."
    ),
    "The tests only ask the model. Who holds the model file itself, or has better tests, may find more.",
    "Epsilon is a lower bound for this model, as if chance had chosen its training data: no guarantee of privacy.",
)


def limits(said: Membership) -> tuple[str, ...]:
    """`LIMITS`, and before them what an audit without true labels does not know."""
    if not said.undeclared:
        return LIMITS
    unknown = (
        f"No true label (column true_label) is given for {count(said.undeclared, 'flagged example')}, so the labels "
        "were taken for right. For wrong ones the comparison is not fair: a trace of them is easily missed."
    )
    return (unknown, *LIMITS)


def headline(found: Verification) -> str:
    """The finding in a few words."""
    if found.membership.found:
        return "The model still gives the flagged examples away"
    if found.membership.unlike:
        return "Whether the model was trained on the flagged examples cannot be told"
    return "No evidence that the model was trained on the flagged examples"


def summary(found: Verification) -> str:
    """The finding with how sure it is, and what would have been seen."""
    said = found.membership
    best = strongest(said)
    compared = f"{count(said.members, 'flagged example')} and {count(said.others, 'unseen one')} of the same kinds"
    area = f"{best.auc:.3f} ({best.auc_low:.3f} to {best.auc_high:.3f}; 0.5 is a coin)"
    if said.found:
        top = best.rules[-1]  # a few may stand out of a list that ranks low
        does = (
            f"ranks a flagged one higher with a probability of {area}"
            if best.auc >= 0.5
            else f"ranks {rule(top)} of the flagged ones above all but {percent(top.level)} of the unseen ones"
        )
        return (
            f"Of {compared}, the test {best.name} {does}. Chance does as much with a probability of "
            f"{said.p_value:.2g}, all tests counted."
        )
    if said.unlike:
        lowest = min(said.attacks, key=lambda attack: attack.auc)
        area = f"{lowest.auc:.3f} ({lowest.auc_low:.3f} to {lowest.auc_high:.3f}; 0.5 is a coin)"
        return (
            f"Of {compared}, the test {lowest.name} ranks a flagged one higher with a probability of {area} only: "
            f"{unlike(said)}"
        )
    return (
        f"Of {compared}, the strongest test ({best.name}) ranks a flagged one higher with a probability of {area}; "
        f"chance does as much with a probability of {said.p_value:.2g}. {power(said)}"
    )


def unlike(said: Membership) -> str:
    """Why nothing can be told where flagged examples rank below unseen ones, and what to do about it."""
    chance = f"examples drawn alike rank as low with a probability of {said.p_below:.2g}."
    if said.undeclared:
        return (
            f"{chance} Flagged labels that are wrong, though no true_label says so, do that; so do flagged examples "
            "that were chosen for being hard, unseen ones of another source, and a model that was made to avoid these "
            "labels. None of them lets a trace be seen. Give the column true_label."
        )
    return (
        f"{chance} Flagged examples that were chosen for being hard do that, and unseen ones of another source; so "
        "does a model that was made to avoid these labels, which gives the flagged ones away as well."
    )


def power(said: Membership) -> str:
    """The smallest effect that so many examples could have shown."""
    if said.unlike:
        return "Beside these unseen examples no trace of the flagged ones could show."
    if said.clear is None:
        return "But so few examples could have shown nothing: not even a clear trace of every one of them."
    share = percent(said.clear / said.members)
    return (
        f"A clear trace of {said.clear:,} of the {said.members:,} ({share}) would have been found in 8 of 10 such "
        "audits; less may be there."
    )


def strongest(said: Membership) -> Attack:
    """The test with the smallest p-value."""
    return next(attack for attack in said.attacks if attack.name == said.strongest)


def rule(one: Rule) -> str:
    """`3 of 72: 4.2% (0.9-11.7%)`."""
    return f"{percent(one.rate)} ({interval(one.low, one.high)})"


def figures(found: Verification) -> list[tuple[str, ...]]:
    """A row for each test: name, area, rates at the three levels, advantage, epsilon, p."""
    return [
        (
            attack.name,
            f"{attack.auc:.3f} ({attack.auc_low:.3f}–{attack.auc_high:.3f})",
            *(rule(one) for one in attack.rules),
            f"{attack.advantage:.2f} ({attack.advantage_low:.2f}–{attack.advantage_high:.2f})",
            f"{attack.epsilon:.2f}",
            f"{attack.p_value:.2g}",
        )
        for attack in found.membership.attacks
    ]


HEAD = ("test", "AUC", "TPR at 0.1% FPR", "at 1% FPR", "at 5% FPR", "advantage", "epsilon ≥", "p")


def resolution(found: Verification) -> list[str]:
    """What the numbers of examples allow at each false-positive rate."""
    return [
        f"At {percent(one.level)} false positives: "
        + (
            f"the threshold is set by {count(found.membership.others, 'unseen example')}"
            if one.resolved
            else f"{count(found.membership.others, 'unseen example')} are too few to set a threshold, so none of them "
            f"passes and the true rate is at most {percent(one.alarms_high)}"
        )
        + (
            "; so few flagged examples could show no rate above it."
            if one.detectable is None
            else f"; a true-positive rate of {percent(one.detectable)} would have shown."
        )
        for one in strongest(found.membership).rules
    ]


def slices(found: Verification) -> list[tuple[str, ...]]:
    """A row for each slice, by the strongest test."""
    return [
        (
            clean(one.by),
            clean(one.value),
            f"{one.members:,}",
            f"{one.others:,}",
            f"{one.auc:.3f} ({one.auc_low:.3f}–{one.auc_high:.3f})",
            f"{percent(one.rate)} ({interval(one.low, one.high)})",
            "few examples" if one.small else "",
        )
        for one in found.membership.slices
    ]


SLICE_HEAD = ("by", "value", "flagged", "unseen", "AUC", "TPR at 5% FPR", "")


def sets(found: Verification) -> list[tuple[str, str, str, str]]:
    """Name, source, count and accuracy of each set."""
    return [
        (name, clean(one.source), f"{one.count:,}", f"{percent(one.accuracy)} ({interval(one.low, one.high)})")
        for name, one in (("flagged", found.flagged), ("reference", found.reference), ("unseen", found.unseen))
    ]


def others(found: Verification) -> list[tuple[str, str, str]]:
    """Name, hash and reference accuracy of each model without the flagged examples."""
    return [
        (clean(one.path), clean(one.sha256[:16]) or MISSING, f"{percent(one.accuracy)} ({interval(one.low, one.high)})")
        for one in found.without
    ]
