"""The method *auto*: the methods for groups, the cheapest first, until one leaves few enough labels."""

from __future__ import annotations

from memaudit.erase import Choice, components, head, relearn, steps
from memaudit.erase.group import by_group
from memaudit.erase.request import Request
from memaudit.findings import Erasure


def run(request: Request, choice: Choice) -> Erasure:
    """The first method that leaves at most `choice.target` of the labels within the budget; else the best of all."""
    trained = (steps.choose, components.choose, relearn.choose)
    return by_group(request, choice, head.choose, *(trained if choice.clean_steps else (components.choose_with_head,)))
