"""What a command that measures needs first: the checkpoint read and settled, and the examples decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter
    from memaudit.checkpoints import Checkpoint
    from memaudit.cli.options import Network
    from memaudit.cli.progress import Stages
    from memaudit.cli.sources import Sources
    from memaudit.data import ExampleSet
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


def load(
    model: str,
    network: Network,
    sources: Sources,
    device: str,
    progress: Stages,
) -> Loaded:
    """Read the checkpoint and the examples, and settle which architecture it is."""
    from memaudit import checkpoints

    options = network.options()
    progress.stage("load model")
    checkpoint = checkpoints.read(model, weights=network.weights)  # type: ignore[arg-type]

    from memaudit.pipeline.load import (
        settle,  # not before: a pickle's child imports torch at the same time as this process
    )

    names, order = sources.class_names(checkpoint)
    read = _reader(sources, names, progress)
    settled = settle(
        checkpoint, options, network.adapter, lambda used: read("reference", sources.reference, used), device
    )
    flagged = read("flagged", sources.flagged, settled.adapter)
    test = None if sources.test is None else read("test", sources.test, settled.adapter)
    return Loaded(checkpoint, settled, flagged, test, names, order)


def _reader(sources: Sources, names: tuple[str, ...], progress: Stages) -> Callable[[str, Path, Adapter], ExampleSet]:
    from memaudit import data

    def read(what: str, source: Path, adapter: Adapter) -> ExampleSet:
        progress.stage(f"read {what}")
        return data.read(
            source,
            preprocess=adapter.preprocess,
            num_classes=adapter.num_classes,
            class_names=names,
            class_order=sources.class_order,
            data=sources.data,
        )

    return read
