"""The officer's page of a scan, in sentences: no term stays unexplained, no figure without how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memaudit.numbers import count, percent
from memaudit.report.officer import edited
from memaudit.report.officer.sheet import Sheet, certain, examples, model, points, policy, run, warned
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.report.document import Report


def of_report(report: Report) -> Sheet:
    """The page of a scan."""
    total, gate = report.summary, report.gate
    are = "is" if total.memorized == 1 else "are"
    accepted = len({*gate.waived, *gate.known})
    return Sheet(
        title="Memorization audit: summary for the file",
        headline=f"{total.memorized:,} of {count(total.flagged, 'examined training example')} {are} memorized by the "
        "model.",
        good=None if report.status == "incomplete" else report.verdict == "pass",
        asked=[
            (
                "Has this model learned single training examples by heart: does it give the answers (“labels”) that it "
                f"was taught for them only because it saw them? {count(total.flagged, 'example')} were named for this "
                "beforehand by the people who run it (for instance wrong labels, withdrawn records or test entries)."
            ),
            *policy(gate.policy, gate.failed),
        ],
        examined=[
            *model(report.model),
            *examples("Examined examples", report.data.flagged),
            *examples("Comparison examples", report.data.reference),
            *((f"Model trained without them: {name}", sha256) for name, sha256 in _others(report)),
            *run(report.volatile, report.by, report.tool.version, report.command),
        ],
        found=_found(report, accepted),
        sure=_sure(report),
        not_shown=[
            "Only the named examples were examined. Others may be memorized too.",
            "An example not called memorized may still have been used in training: a typical one leaves no trace.",
            "Whether a person can be identified from an example, and by what means, is not examined.",
            *warned(report.warnings),
        ],
        done=[edited.UNTOUCHED] if report.erasure is None else edited.done(report.erasure),
        remains=_remains(report, accepted),
        points=points(
            likelihood="“What was found” and “How sure this is”; each record in the report, section Flagged examples",
            resistance="one kind of attack: does the model give what it learned by heart? Tests of whether a record "
            "was used in training are in memaudit verify",
            data="“What was examined”: sources, counts and hashes of the data; wrong labels found, in the report",
        ),
    )


def _others(report: Report) -> list[tuple[str, str]]:
    models = [] if report.counterfactuals is None else report.counterfactuals.models
    return [(clean(one.path), clean(one.sha256) or "in memory") for one in models]


def _found(report: Report, accepted: int) -> list[str]:
    total = report.summary
    lines = [
        (
            "An example is called memorized when the model gives exactly the label that it was trained with, although "
            "neither similar examples with right labels nor parts of the model that had to learn without it support "
            "that label. The model then holds something about this one record."
        ),
    ]
    if total.outcomes:
        located = sum(f.memorized and f.outcome == "localized" for f in report.findings)
        rate = total.random_erased
        chance = "" if rate is None else f" Parts taken at random do so in {percent(rate)} of tries."
        lines.append(
            f"For {located:,} of them a few parts of the network were found without which the model no longer gives "
            f"the label and still does its other work.{chance} This says where the record sits."
        )
    if (without := report.counterfactuals) is not None:
        lines.append(
            f"{count(len(without.models), 'model')} trained without the examined examples "
            f"{'was' if len(without.models) == 1 else 'were'} asked, too: {percent(without.memorized.rate)} "
            f"({certain(without.memorized.low, without.memorized.high)}) of the labels are given only by the model "
            "that was trained with the example."
        )
    if accepted:
        lines.append(f"{count(accepted, 'memorized example')} had been accepted before, by name or in an older report.")
    return lines


def _sure(report: Report) -> list[str]:
    said = report.summary.memorization
    if said is None:
        return ["How sure the finding is was not measured."]
    lines = []
    if report.summary.memorized:
        lines.append(
            f"Some labels look memorized by chance. Without those, {said.beyond:.0f} examples are memorized "
            f"({said.beyond_low:,} to {said.beyond_high:,} with 95 % certainty). Of ten examples called memorized, "
            "about one may be called so wrongly."
        )
    if said.planted:
        lines.append(
            f"To learn what the check can miss, a copy of the model was made to learn "
            f"{count(said.planted, 'wrong label')} of comparison examples by heart: the check recognised "
            f"{percent(said.power)} of them ({certain(said.power_low, said.power_high)})."
        )
    return lines


def _remains(report: Report, accepted: int) -> list[str]:
    open_ = report.summary.memorized - accepted
    lines = []
    if report.erasure is not None:
        lines += edited.remains(report.erasure)
    elif open_ > 0:
        lines.append(
            f"Decide about the {count(open_, 'memorized example')}: train again without them, edit the model "
            "(memaudit erase), or accept them with a reason and a date."
        )
    if report.erasure is not None or open_ > 0:
        lines.append("Then have the new model checked: memaudit verify says whether the examples are still in it.")
    else:
        lines.append("No decision is open about the examined examples.")
    lines.append(
        "Keep report.json with this page: it holds every figure, and its hash of the model shows what was examined."
    )
    return lines
