"""Row errors, collected: one message for a broken data set, with its first rows and the total."""

from __future__ import annotations

from memaudit.errors import DataRejected

# Enough to see the pattern; a manifest exported with the wrong labels has as many errors as rows.
SHOWN = 20


class Rejections:
    """What is wrong with the rows of one source.

    Args:
        source: printable name of the source.
        what: what its rows are called, plural.
    """

    def __init__(self, source: str, what: str = "rows") -> None:
        self.source = source
        self.what = what
        self.reasons: list[str] = []

    def add(self, where: str, reason: object) -> None:
        """Note that the row at `where` (`line 7`, a file name) is rejected because of `reason`."""
        self.reasons.append(f"{where}: {reason}")

    def check(self, total: int, hint: str = "") -> None:
        """Raise what was noted.

        Raises:
            DataRejected: some of the `total` rows were rejected; the first is in the message, 20 in `details`.
        """
        if not self.reasons:
            return
        count = f"{len(self.reasons)} of {total} {self.what} rejected; " if total > 1 else ""
        raise DataRejected(f"{self.source}: {count}{self.reasons[0]}", hint=hint, details=self.reasons[:SHOWN])
