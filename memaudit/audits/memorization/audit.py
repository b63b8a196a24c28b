"""Which flagged examples are memorized, how many of them beyond chance, and what this evidence could not find."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from memaudit.audits.base import ForExample, ForReport, Piece, Workload
from memaudit.audits.context import Context
from memaudit.audits.memorization.crossfitted import FOLDS
from memaudit.audits.memorization.estimating import Weighed, weigh
from memaudit.audits.memorization.power import planting
from memaudit.audits.memorization.relearned import ASKED, epochs_for
from memaudit.audits.memorization.verdict import LEVEL, Calls, call
from memaudit.engine.loop import BACKWARD
from memaudit.engine.views import VIEWS
from memaudit.findings import Estimate, EstimatePart, Memorization, ReportWarning
from memaudit.intervals import wilson
from memaudit.numbers import count, percent, tidy

# Fewer clean examples make no small p-value.
ENOUGH = 100
# Power below which a green verdict says little, and false alarms among all clean examples above which a red one does.
POOR_POWER = 0.5
POOR_FALSE_ALARMS = 0.15


class Memorized:
    """One estimate per flagged example, made of parts, and a verdict on the list; runs in every audit."""

    name = "memorization"

    def passes(self, size: Workload) -> float:
        """Relearning on half of the reference at a time, asking everybody; views, checkpoints; the planted labels."""
        rows = min(size.reference, size.profile.relearn_rows)
        epochs = epochs_for(-(-rows // FOLDS))
        asked = min(ASKED, epochs) * (size.flagged + rows)
        learned = epochs * rows * (FOLDS - 1) * (1 + BACKWARD)
        series = size.states * (size.flagged + rows) if size.states > 1 else 0
        views = len(VIEWS) * (size.flagged + rows)
        trial = planting(size.reference, rows, learned if size.profile.relearnings else 0)
        return size.profile.relearnings * (learned + asked) + series + views + trial

    def pieces(self, size: Workload) -> int:
        """One a relearning of each half, or a batch of every view."""
        return FOLDS * size.profile.relearnings or -(-len(VIEWS) * (size.flagged + size.reference) // size.batch)

    def run(self, context: Context) -> Iterator[Piece]:
        """`estimate` and `memorized` of every flagged example, and `memorization` of the list."""
        found = weigh(context)
        fitted = context.fitted
        p_values = found.joint.p_values()
        calls = call(p_values[fitted], int(found.joint.calibration.known))
        called = {row for row, yes in zip(fitted, calls.called.tolist(), strict=True) if yes}
        adjusted = dict(zip(fitted, calls.q_values.tolist(), strict=True))
        by_part = [(part, part.p_values().tolist()) for part in found.parts]
        for row in range(len(context.flagged)):
            parts = [
                EstimatePart(name=p.name, score=tidy(float(p.scores[row])), p_value=tidy(values[row]))
                for p, values in by_part
            ]
            q_value = adjusted.get(row)
            estimate = Estimate(
                score=tidy(float(found.joint.scores[row])),
                p_value=tidy(float(p_values[row])),
                q_value=None if q_value is None else tidy(q_value),
                parts=parts,
            )
            yield ForExample(row, {"estimate": estimate, "memorized": row in called})
        said = _summed(found, calls, len(called))
        yield ForReport("memorization", said)
        yield ForReport("estimates", found.joint.calibration.own)
        yield ForReport("warnings", doubts(said))


def _summed(found: Weighed, calls: Calls, called: int) -> Memorization:
    joint = found.joint
    clean = joint.calibration
    power, hard = _share(found.planted), _share(clean.p_values(clean.own, torch.zeros(len(clean.own))))
    known = int(clean.known)
    return Memorization(
        called=called,
        reached=calls.reached,
        expected=tidy(calls.expected),
        beyond=tidy(calls.beyond),
        beyond_low=calls.low,
        beyond_high=calls.high,
        chance=tidy(calls.chance),
        level=LEVEL,
        calibration=known,
        planted=len(found.planted),
        power=tidy(power[0]),
        power_low=tidy(power[1]),
        power_high=tidy(power[2]),
        false_alarms=LEVEL,
        false_alarms_low=tidy(wilson(LEVEL * known, known)[0]),
        false_alarms_high=tidy(wilson(LEVEL * known, known)[1]),
        false_alarms_hard=tidy(hard[0]),
        parts=[part.name for part in found.parts],
    )


def _share(p_values: Tensor) -> tuple[float, float, float]:
    """How many are at most `LEVEL`, with its interval."""
    hits, count = int((p_values <= LEVEL).sum()), len(p_values)
    return (hits / count if count else 0.0, *wilson(hits, count))


def doubts(found: Memorization) -> list[ReportWarning]:
    """What a reader must know of this evidence before trusting a green verdict, or a red one."""
    said = []
    if found.calibration < ENOUGH:
        said.append(
            f"p-values compare with {count(found.calibration, 'clean example')} that the model predicts: no label can "
            f"reach less than {1 / (1 + found.calibration):.3f}. Name {ENOUGH} or more with --reference."
        )
    if found.power_high < POOR_POWER:
        said.append(
            f"of wrong labels that the network was made to learn this evidence finds {percent(found.power)}: many "
            "memorized labels may be missed. More reference examples of the same classes serve better, and so does a "
            "series (--checkpoints)."
        )
    if found.false_alarms_hard > POOR_FALSE_ALARMS:
        said.append(
            f"the model mispredicts part of the reference, and {percent(found.false_alarms_hard)} of all its examples "
            "would be called: rightly labelled examples that are as hard may be called, too. Clean examples that the "
            "model was trained on serve better with --reference."
        )
    return [ReportWarning(code="MEM109", message=one) for one in said]
