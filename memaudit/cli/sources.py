"""Where a scan's examples are: as the user named them, or as the training run says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.checkpoints import Checkpoint, Run
    from memaudit.cli.options import Places
    from memaudit.data.sources import Known
    from memaudit.findings import ReportWarning


# The 95 % interval of any share over so many is at most a point wide to either side (1.96 * sqrt(0.25 / 9,604)).
REFERENCE_SIZE = 10_000


@dataclass(frozen=True)
class Sources:
    """Every place that examples are read from.

    Attributes:
        data: the data set that the others may be lists of rows of.
        row_order: the loader whose numbers an image folder's rows have; None: nobody says.
        reference_size: reference examples that are drawn where there are more; 0: all are read.
        said: what says the class order where no option does: checkpoint (the run's `args.yaml`) or default.
        warnings: what was taken from the run, for the report.
        listed: what was listed of them so far.
    """

    flagged: Path
    reference: Path
    test: Path | None
    data: Path | None
    class_order: str
    said: str
    row_order: str | None = None
    warnings: tuple[ReportWarning, ...] = ()
    reference_size: int = REFERENCE_SIZE
    listed: Known = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, model: str, places: Places) -> Sources:
        """The places that were named; what is left out comes from the timm run whose folder `model` is.

        Without any reference, it is all of the data set that is not flagged.

        Raises:
            UsageError: nobody says where the flagged or the reference examples are.
        """
        from memaudit.checkpoints import find_run

        flagged, reference, test, data = places.flagged, places.reference, places.test, places.data
        class_order = places.class_order
        asked = None in (data, reference, class_order, places.row_order)
        run = find_run(Path(model), class_order) if asked else None
        if flagged is None:
            raise UsageError(
                "no flagged examples",
                hint="--flagged FOLDER, manifest or .npz; or flagged = ... in a memaudit.toml (memaudit init); "
                "or --data with the training set alone: what is memorized most is found and audited",
            )
        notes: list[str] = []
        if data is None and run is not None and run.train is not None:
            data = run.train
            notes.append(f"the training data was taken from the run's args.yaml: {clean(data.name)}")
        if reference is None and run is not None and run.validation is not None:
            reference = run.validation
            notes.append(f"the reference was taken from the run's args.yaml: {clean(reference.name)}")
        elif reference is None and data is not None:
            reference = data
            notes.append("the reference is all of the data that is not flagged; --reference names examples known clean")
        if reference is None:
            raise UsageError(_without_reference(run), hint="--reference FOLDER, manifest or .npz of clean examples")
        order = class_order or (run.class_order if run is not None else "natural")
        said = "checkpoint" if run is not None and run.train is not None else "default"
        from memaudit.findings import ReportWarning

        warnings = tuple(ReportWarning(code="MEM905", message=note) for note in notes)
        numbering = run.row_order if run is not None and data == run.train else None
        size = REFERENCE_SIZE if places.reference_size is None else places.reference_size
        return cls(flagged, reference, test, data, order, said, places.row_order or numbering, warnings, size)

    @staticmethod
    def trains(model: str, places: Places) -> bool:
        """Whether it is known where the training data are."""
        from memaudit.checkpoints import find_run

        run = find_run(Path(model), places.class_order) if places.data is None else None
        return places.data is not None or (run is not None and run.train is not None)

    @classmethod
    def training(cls, model: str, data: Path | None, class_order: str | None) -> Sources:
        """The training set that was named, or that of the timm run whose folder `model` is, as every set there is.

        Raises:
            UsageError: neither says where it is.
        """
        from memaudit.checkpoints import find_run
        from memaudit.findings import ReportWarning

        run = find_run(Path(model), class_order) if data is None or class_order is None else None
        warnings: tuple[ReportWarning, ...] = ()
        if data is None and run is not None and run.train is not None:
            data = run.train
            note = f"the training data was taken from the run's args.yaml: {clean(data.name)}"
            warnings = (ReportWarning(code="MEM905", message=note),)
        if data is None:
            problem = f": {run.problem}" if run is not None and run.problem else ""
            raise UsageError(
                f"no training data{problem}",
                hint="--data FOLDER, manifest or .npz; or data = ... in a memaudit.toml (memaudit init)",
            )
        order = class_order or (run.class_order if run is not None else "natural")
        said = "checkpoint" if run is not None and run.train is not None else "default"
        return cls(data, data, None, None, order, said, warnings=warnings)

    def class_names(self, checkpoint: Checkpoint) -> tuple[tuple[str, ...], str]:
        """Class names by label, and what said them: a named file, the checkpoint, tables, class folders, a manifest."""
        from memaudit import data

        where = self.data or self.reference
        if self.class_order not in ("natural", "lexical"):
            return data.class_names_of(where, self.class_order), "file"
        if checkpoint.facts.class_names:
            return checkpoint.facts.class_names, "checkpoint"
        if noted := data.names_noted(where):
            return noted, "data"
        names = data.class_names_of(where, self.class_order, self.row_order) or data.names_used(where, self.class_order)
        return names, self.class_order if names else "given"


def _without_reference(run: Run | None) -> str:
    problem = f": {run.problem}" if run is not None and run.problem else ""
    return f"no reference examples{problem}"
