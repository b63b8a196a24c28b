"""The examples an audit takes of what it was given, and what a reader must know of the others."""

from __future__ import annotations

from dataclasses import dataclass

from memaudit.data import ExampleSet, remove_overlap
from memaudit.errors import DataRejected, Incomplete
from memaudit.findings import ReportWarning


@dataclass(frozen=True)
class Admitted:
    """The sets as they are audited.

    Attributes:
        incomplete: why the audit does not see all of what it was given.
    """

    flagged: ExampleSet
    reference: ExampleSet
    warnings: tuple[ReportWarning, ...]
    incomplete: tuple[str, ...]


def admit(flagged: ExampleSet, reference: ExampleSet, limit: int | None) -> Admitted:
    """Take flagged rows out of the reference, the first `limit` flagged ones, and say what is missing.

    Raises:
        Incomplete: no example of a set could be read.
        DataRejected: a set is empty, or the reference too small.
    """
    warnings: list[ReportWarning] = []
    incomplete: list[str] = []
    for name, examples in (("flagged", flagged), ("reference", reference)):
        if not len(examples) and examples.unreadable:
            raise Incomplete(f"none of the {name} examples could be read", details=examples.unreadable)
    if not len(flagged):
        raise DataRejected("there is no flagged example to audit", hint="Name at least one with --flagged.")
    reference, overlap = remove_overlap(reference, flagged)
    if overlap:
        said = f"{overlap} reference examples are also flagged; they were left out of the reference"
        warnings.append(ReportWarning(code="MEM101", message=said))
    if len(reference) < 2:
        raise DataRejected(
            f"{len(reference)} reference examples are too few",
            hint="Give clean examples the flagged ones do not contain: a few hundred give useful intervals.",
        )
    if limit is not None and len(flagged) > limit:
        incomplete.append(f"--limit {limit}: {len(flagged) - limit} flagged examples not audited")
        flagged = flagged.subset(range(limit))
    for name, examples in (("flagged", flagged), ("reference", reference)):
        if examples.omitted:
            incomplete.append(f"{examples.omitted} {name} examples were not read because of a limit")
        if examples.duplicates:
            said = f"{len(examples.duplicates)} {name} rows repeat others: {examples.duplicates[0]}"
            warnings.append(ReportWarning(code="MEM105", message=said))
    for name, examples in (("flagged", flagged), ("reference", reference)):
        if examples.unreadable:
            shown = "; ".join(examples.unreadable[:3])
            incomplete.append(f"{len(examples.unreadable)} {name} examples could not be read: {shown}")
    return Admitted(flagged, reference, tuple(warnings), tuple(incomplete))
