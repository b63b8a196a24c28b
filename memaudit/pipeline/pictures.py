"""Small pictures of what a page shows: the flagged examples, the worst ones larger, and the clean ones near them."""

from __future__ import annotations

from collections.abc import Sequence

from memaudit.data import ExampleSet
from memaudit.data.thumbs import LARGE, MOST, SIDE, thumbnails
from memaudit.report import pictures
from memaudit.report.document import Report


def pictures_of(report: Report, flagged: ExampleSet, reference: ExampleSet) -> dict[str, bytes]:
    """PNG bytes by example id, for `Report.save` and every other writer of the page."""
    wanted, near = pictures.wanted(report, MOST)
    large, small = wanted[: pictures.LARGE], wanted[pictures.LARGE :]
    found: dict[str, bytes] = {}
    for examples, identities, side in ((reference, near, SIDE), (flagged, small, SIDE), (flagged, large, LARGE)):
        found |= thumbnails(_named(examples, identities), side)
    return found


def _named(examples: ExampleSet, identities: Sequence[str]) -> ExampleSet:
    """The rows of `examples` whose content has one of these ids, once each, in that order."""
    rows = {example.id: row for row, example in reversed(list(enumerate(examples.examples)))}
    return examples.subset([rows[identity] for identity in identities if identity in rows])
