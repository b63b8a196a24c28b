"""The officer's page of a verification, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import count, percent
from memaudit.report.officer import edited
from memaudit.report.officer.sheet import Sheet, certain, examples, model, points, policy, run, warned
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.findings import Membership
    from memaudit.report.verified import Verification

STILL = "The model's answers still show that it was trained on the examples in question."
GONE = "No sign was found that the model was trained on the examples in question."
UNTOLD = "It cannot be told whether the model was trained on the examples in question."


def of_verification(found: Verification) -> Sheet:
    """The page of a verification."""
    from memaudit.report.verification import words

    said, erasure = found.membership, found.erasure
    return Sheet(
        title="Verification of removal: summary for the file",
        headline=STILL if said.found else UNTOLD if said.unlike else GONE,
        good=None if found.status == "incomplete" else found.verdict == "pass",
        asked=[
            (
                f"Do this model's answers still show that it was trained on certain examples? "
                f"{count(said.members, 'example')} (“flagged”) were named for this beforehand. They were compared with "
                f"{count(said.others, 'example')} of the same kinds that the model certainly never saw (“unseen”)."
            ),
            *policy(found.gate.policy, found.gate.failed),
        ],
        examined=[
            *model(found.model),
            *examples("Flagged examples", found.flagged),
            *examples("Unseen examples", found.unseen),
            *examples("Comparison examples", found.reference),
            *((f"Model trained without them: {clean(m.path)}", clean(m.sha256) or "in memory") for m in found.without),
            *run(found.volatile, found.by, found.tool.version, found.command),
        ],
        found=_found(found),
        sure=_sure(said),
        not_shown=[*words.limits(said)[:-1], *warned(found.warnings)],
        done=["Nothing was changed by this verification. It examines the model as it was handed over."]
        if erasure is None
        else [
            f"The examined model is the edited copy. {line}" if not n else line
            for n, line in enumerate(edited.done(erasure))
        ],
        remains=[
            _next(said),
            *([] if erasure is None else edited.remains(erasure)),
            *(
                ["More unseen examples would let smaller traces show."]
                if said.clear is None or said.clear > said.members / 10
                else []
            ),
        ],
        points=points(
            likelihood="“What was found” (how often an attacker would be right) and “How sure this is”",
            resistance=f"whether a record was used in training (“membership inference”), by {len(said.attacks)} "
            "published tests, listed in the verification, section Tests",
            data="“What was examined”: sources, counts and hashes of every set of examples",
        ),
    )


def _next(said: Membership) -> str:
    if said.found:
        return "Train again without the examples, or edit the model, and verify it again."
    if said.unlike:
        return "Say which labels are wrong (true_label), take unseen examples of the same source, and verify it again."
    return "Keep this page and verification.json. Verify again after every further training."


def _found(found: Verification) -> list[str]:
    from memaudit.report.verification import words

    said, best = found.membership, words.strongest(found.membership)
    return [
        (
            f"{count(len(said.attacks), 'test')} tried to tell flagged from unseen examples by the model's answers "
            f"alone. Shown one of each, the best test picks the flagged one in {percent(best.auc)} of cases "
            f"({percent(best.auc_low)} to {percent(best.auc_high)} with 95 % certainty). Guessing is right in 50 %."
        ),
        *(
            f"If the test may wrongly accuse at most {percent(one.level)} of the unseen examples, it recognises "
            f"{percent(one.rate)} of the flagged ones ({certain(one.low, one.high)}). Guessing recognises "
            f"{percent(one.level)}."
            for one in best.rules
            if one.resolved
        ),
    ]


def _sure(said: Membership) -> list[str]:
    if said.unlike:
        from memaudit.report.verification import words

        return [f"The labels of the flagged examples are too improbable beside the unseen ones: {words.unlike(said)}"]
    lines = [
        (
            f"Had the model never seen the flagged examples, chance alone would show a difference this large in "
            f"{100 * said.p_value:.2g} % of such checks; that several tests were tried is counted. Below 5 % this page "
            "speaks of a sign, so 5 of 100 checks of models that never saw the examples find one wrongly."
        )
    ]
    if said.clear is None:
        lines.append("So few examples can show nothing, not even if the model clearly remembered every one of them.")
    else:
        lines.append(
            f"Had the model clearly remembered {said.clear:,} of the {said.members:,} examples "
            f"({percent(said.clear / said.members)}), 8 of 10 such checks would have found it. It may remember fewer."
        )
    return lines
