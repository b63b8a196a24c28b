"""Work whose result anybody can check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memaudit.engine.engines import Work
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import ModelRejected


class Squares(Work[int]):
    """The square of each row; thirteen is refused."""

    def __call__(self, evaluator: Evaluator, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        for row in rows:
            if row == 13:
                raise ModelRejected("thirteen", hint="Leave it out.")
            yield row, row**2
