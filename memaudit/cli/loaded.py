"""What a command that measures needs first: the checkpoint read and settled, and the examples decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter
    from memaudit.adapters.options import ModelOptions
    from memaudit.checkpoints import Checkpoint
    from memaudit.cli.options import Compute, Network
    from memaudit.cli.progress import Stages
    from memaudit.cli.sources import Sources
    from memaudit.data import Arrays, ExampleSet
    from memaudit.data.kept import Kept
    from memaudit.engine.others import Other
    from memaudit.findings import ReportWarning
    from memaudit.pipeline.load import Settled


@dataclass(frozen=True)
class Loaded:
    """Everything an audit needs, read and checked."""

    checkpoint: Checkpoint
    settled: Settled
    flagged: ExampleSet
    test: ExampleSet | None
    class_names: tuple[str, ...]
    class_order: str
    options: ModelOptions
    warnings: tuple[ReportWarning, ...] = ()


def load_others(
    paths: Sequence[Path], loaded: Loaded, network: Network, sources: Sources, compute: Compute, progress: Stages
) -> list[Other]:
    """Models trained without the flagged examples, each with all examples as its own preprocessing reads them.

    Raises:
        UsageError: one is the model itself, or the same twice.
    """
    from memaudit.engine.others import Other

    found: list[Other] = []
    for path in paths:
        other = load(str(path), network, sources, compute, progress, like=loaded)
        sha256 = other.checkpoint.sha256
        if sha256 == loaded.checkpoint.sha256 or any(sha256 == one.sha256 for one in found):
            twin = "the model itself" if sha256 == loaded.checkpoint.sha256 else "there twice"
            raise UsageError(
                f"--without {clean(path.name)} is {twin}",
                hint="Name models that were trained without the flagged examples, each once.",
            )
        sets = {"flagged": other.flagged, "reference": other.settled.reference}
        if other.test is not None:
            sets["unseen"] = other.test
        found.append(Other(other.checkpoint.path.name, sha256, other.settled.adapter, sets))
    return found


def load(
    model: str,
    network: Network,
    sources: Sources,
    compute: Compute,
    progress: Stages,
    *,
    like: Loaded | None = None,
) -> Loaded:
    """Read the checkpoint and the examples, and settle which architecture it is.

    What cannot work is said before anything is read: a file that is missing, a device that is not there.

    Args:
        like: another model on the same sources; what it read is used again where images are prepared alike.
    """
    from memaudit import checkpoints

    progress.stage("load model")
    device = compute.device
    _present(sources, device)
    options = replace(network.options(), arrays=_arrays(sources))
    checkpoint = checkpoints.read(model, weights=network.weights)  # type: ignore[arg-type]

    # Not before: a pickle's child imports torch at the same time as this process.
    from memaudit.pipeline.load import candidates, settle

    names, order = sources.class_names(checkpoint)
    same = sources.flagged == sources.reference  # a whole training set stands for both
    read = _reader(sources, names, progress, like, kept=compute.kept, redact=bool(network.redact))
    spoken = order in ("natural", "lexical") and not (sources.data or sources.reference).is_dir()

    def read_reference(used: Adapter, limit: int | None) -> ExampleSet:
        if spoken and len(names) != used.num_classes:
            raise _unordered(sources.reference, names, used.num_classes)
        return read("reference", sources.reference, used, limit, None if same else sources.reference_size or None)

    def read_flagged(used: Adapter) -> ExampleSet:
        return read("flagged", sources.flagged, used)

    def some_flagged(used: Adapter, limit: int | None = 200) -> ExampleSet:
        """What tells more than the reference; nothing where it is the same."""
        found = read("flagged", sources.flagged, used, 1 if same else limit)
        return found.subset([]) if same else found

    from memaudit.pipeline import pixels
    from memaudit.pipeline.geometry import settle_geometry
    from memaudit.pipeline.sizes import settle_size

    found = candidates(checkpoint, options, network.adapter)
    sized = settle_size(found, read_reference, device, options.arrays.shape if options.arrays else ())
    settled = settle(checkpoint, found, read_reference, device)
    settled = replace(settled, warnings=(*sized, *settled.warnings))
    settled = pixels.settle_files(settled, options, read_reference, device, flagged=read_flagged)
    settled = pixels.check_normalisation(settled, options, names, device, flagged=some_flagged)
    settled = settle_geometry(settled, read_reference, some_flagged, device)
    flagged = settled.reference if same else read_flagged(settled.adapter)
    test = None if sources.test is None else read("test", sources.test, settled.adapter)
    sets = {"flagged": flagged, "reference": settled.reference, "test": test}
    warnings = pixels.notes(settled, options, sets)
    return Loaded(checkpoint, settled, flagged, test, _names(settled.adapter, names), order, options, warnings)


def _unordered(source: Path, names: tuple[str, ...], classes: int) -> DataRejected:
    from memaudit.data.paths import display

    return DataRejected(
        f"{display(source)} names {len(names)} classes, the model has {classes}: nothing says which label each name is",
        hint="list all of the model's classes, one per line in label order, in a file: --class-order FILE",
    )


def _present(sources: Sources, device: str) -> None:
    """Raise where a set of examples or the device is missing."""
    from memaudit.data.paths import display

    for place in dict.fromkeys((sources.flagged, sources.reference, sources.test, sources.data)):
        if place is not None and not place.exists():
            raise DataRejected(f"{display(place)} does not exist", hint="check the path, and where you run this")
    if device not in ("auto", "cpu"):
        from memaudit.engine.device import resolve_device

        resolve_device(device)


def _arrays(sources: Sources) -> Arrays | None:
    """What the examples are, where those of all sets are arrays of one shape."""
    from memaudit import data

    places = dict.fromkeys((sources.data, sources.reference, sources.flagged, sources.test))
    found = {data.described(place) for place in places if place is not None} - {None}
    return found.pop() if len(found) == 1 else None


def _names(adapter: Adapter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names; of labels that do not exclude each other, two each."""
    from memaudit import data

    return data.paired_names(names, adapter.num_classes) if adapter.multi_label else names


def _reader(
    sources: Sources,
    names: tuple[str, ...],
    progress: Stages,
    like: Loaded | None,
    *,
    kept: Kept | None,
    redact: bool,
) -> Callable[..., ExampleSet]:
    from memaudit import data

    known: dict[str, ExampleSet] = {}
    shape: object = None
    if like is not None:
        known = {"flagged": like.flagged, "reference": like.settled.reference}
        if like.test is not None:
            known["test"] = like.test
        shape = _geometry(like.settled.adapter)

    def read(
        what: str, source: Path, adapter: Adapter, limit: int | None = None, sample: int | None = None
    ) -> ExampleSet:
        if limit is None and what in known and _geometry(adapter) == shape:
            return known[what]
        progress.stage(f"read {what}" if limit is None else f"try ways to prepare images ({what})")
        found = data.read(
            source,
            preprocess=adapter.preprocess,
            num_classes=adapter.num_classes,
            class_names=_names(adapter, names),
            class_order=sources.class_order,
            row_order=sources.row_order,
            data=sources.data,
            sample=sample,
            limit=limit,
            paired=adapter.multi_label,
            encode=adapter.encode,
            known=sources.listed,
            kept=kept if limit is None else None,
        )
        return found.redacted() if redact else found

    return read


def _geometry(adapter: Adapter) -> object:
    """What examples are read by, apart from the normalisation that the network itself applies."""
    return (adapter.preprocess.geometry, adapter.num_classes, adapter.encode)
