"""The audits there are, and which of them a run makes."""

from __future__ import annotations

from collections.abc import Mapping

from memaudit.audits.base import Audit
from memaudit.audits.counterfactual import CounterfactualAudit
from memaudit.audits.gradients import Gradients
from memaudit.audits.learning import LearningOrder
from memaudit.audits.localize.audit import Localize
from memaudit.audits.memorization.audit import Memorized
from memaudit.audits.retrain import Retrain
from memaudit.audits.rewind import Rewind
from memaudit.errors import UsageError
from memaudit.settings import AUDITS, OVER_TIME, Settings

BY_NAME: Mapping[str, Audit] = {
    "localize": Localize(),
    "gradients": Gradients(),
    "rewind": Rewind(),
    "retrain": Retrain(),
}


def chosen(settings: Settings, earlier: bool, *, without: bool = False) -> tuple[Audit, ...]:
    """The audits that will run, in order: memorization always, learning order where there is a series.

    Unless others are named localization is all: those over time can take tens of times as long.

    Args:
        earlier: there are earlier checkpoints of the model.
        without: there are models without the flagged examples.

    Raises:
        UsageError: one needs earlier checkpoints and there are none.
    """
    names = settings.audits
    if names is None:
        names = tuple(name for name, kind in AUDITS.items() if not kind.series)
    over_time = [name for name in OVER_TIME if name in names]
    if over_time and not earlier:
        raise UsageError(
            f"{over_time[0]} needs earlier checkpoints of the model, and there are none",
            hint="Name them with --checkpoints DIR, GLOB or FILE; memaudit inspect MODEL shows what is found.",
        )
    followed = earlier and (settings.audits is None or over_time)
    first: tuple[Audit, ...] = (Memorized(), *([LearningOrder()] if followed else []))
    last: tuple[Audit, ...] = (CounterfactualAudit(),) if without else ()
    return (*first, *(BY_NAME[name] for name in AUDITS if name in names), *last)
