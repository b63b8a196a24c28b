"""`memaudit.audit`: a module, tensors and data sets in memory, audited and left as they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.data import ExampleSet, Preprocess, from_dataset, from_tensors, paired_names
from memaudit.errors import DataRejected, UsageError
from memaudit.findings import ReportWarning
from memaudit.network.scoped import as_found
from memaudit.network.states import State
from memaudit.pipeline import pixels
from memaudit.pipeline.auditor import Auditor
from memaudit.pipeline.load import Settled, settle_presets
from memaudit.pipeline.series import from_memory
from memaudit.report.document import Report
from memaudit.settings import PROFILES, Progress, Settings


def audit(
    model: nn.Module | Adapter,
    flagged: Any,
    reference: Any,
    *,
    settings: Settings | None = None,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = (),
    checkpoints: Any = (),
    multi_label: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Audit a model in memory: which flagged examples it memorized, in which units, and what cutting them costs.

    Args:
        model: a classifier, or a loaded adapter; left as found, mode and device included.
        flagged: the examples under audit with the labels they were trained with: an `ExampleSet`, a pair
            `(images, labels)` of tensors or arrays, or a dataset of such pairs.
        reference: clean examples, likewise; those that are also flagged are left out.
        settings: all settings at once; single options replace theirs.
        preprocess: what images go through before a bare module; by default nothing but uint8 to [0, 1].
        class_names: by label, for the report.
        checkpoints: earlier states of the model for the audits over time, earliest first: networks or state dicts, or
            paths (a folder, a pattern, files) that are ordered by the epoch they carry.
        multi_label: labels do not exclude each other: the model has one logit a label, and labels are `(N, L)` of 0, 1
            and -1 (not asked). A finding is then an example and one label.
        progress: is called as the audit goes on.
        **options: single fields of `Settings` (`max_units=5, seed=1`).

    Returns:
        The report; `.findings`, `.neurons`, `.save(path)`.

    Raises:
        MemauditError: a set is empty or its labels do not fit, a premise is broken, memory or device are missing.
    """
    chosen = settings_for(model, settings, options)
    shape = model.preprocess if isinstance(model, Adapter) else preprocess or as_given(flagged, model)
    with as_found(model.module if isinstance(model, Adapter) else model):
        adapter = model if isinstance(model, Adapter) else wrap(model, shape)
        adapter.multi_label = adapter.multi_label or multi_label
        names = paired_names(class_names, adapter.num_classes) if adapter.multi_label else tuple(class_names)
        own = adapter.preprocess
        try:
            sets, warnings = _read(adapter, flagged, reference, names, chosen.device)
            states: Sequence[State] = ()
            if isinstance(checkpoints, str | Path) or len(checkpoints):
                most = PROFILES[chosen.profile].checkpoints if chosen.profile in PROFILES else 2
                states, said = from_memory(adapter, checkpoints, most=most)
                warnings += tuple(ReportWarning(code="MEM106", message=note) for note in said)
            auditor = Auditor(adapter, *sets, chosen, class_names=names, progress=progress, states=states)
            auditor.warnings += warnings
            return auditor.run()
        finally:
            adapter.preprocess = own


def _read(
    adapter: Adapter, flagged: Any, reference: Any, names: tuple[str, ...], device: str
) -> tuple[tuple[ExampleSet, ExampleSet], tuple[ReportWarning, ...]]:
    """Flagged and reference examples as the network was trained on such images, and what a reader must know of that."""

    def read(used: Adapter, most: int | None) -> ExampleSet:
        return examples_of(reference, "reference", used.preprocess, used.multi_label)

    def read_flagged(used: Adapter) -> ExampleSet:
        return examples_of(flagged, "flagged", used.preprocess, used.multi_label)

    given = adapter.preprocess
    said = ModelOptions(
        mean=given.mean or None,
        exif=None if given.exif == "ignore" and _again(reference) else given.exif,
        bit_depth=given.bit_depth if given.bit_depth or _again(reference) else "clip",
    )
    taken = settle_presets(adapter, read, device)
    settled = Settled(adapter, read(adapter, None), taken)
    if len(settled.reference) > 1:
        settled = pixels.settle_files(settled, said, read, device, flagged=read_flagged, words=pixels.CODE)
        settled = pixels.check_normalisation(settled, said, names, device, flagged=read_flagged, words=pixels.CODE)
    own = read_flagged(adapter)
    warnings = pixels.notes(settled, said, {"flagged": own, "reference": settled.reference}, pixels.CODE)
    return (own, settled.reference), warnings


def _again(data: Any) -> bool:
    """Whether the images can be read once more, in another way."""
    return not isinstance(data, ExampleSet) and hasattr(data, "__getitem__")


def settings_for(model: object, settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """The settings of a library call on `model`, single `options` in place of theirs.

    Raises:
        UsageError: there is no such option, or `model` is neither a module nor an adapter.
    """
    try:
        chosen = replace(settings or Settings(), **options)
    except TypeError as wrong:
        raise UsageError(str(wrong)) from None
    if not isinstance(model, nn.Module | Adapter):
        raise UsageError(f"model must be an nn.Module or an adapter, not {type(model).__name__}")
    return chosen


def wrap(module: nn.Module, preprocess: Preprocess) -> Adapter:
    """A bare module as an adapter."""
    return Adapter(module, architecture=type(module).__name__, preprocess=preprocess, reason="a module in memory")


def as_given(data: Any, model: nn.Module) -> Preprocess:
    """No resizing and no normalisation: the shape of the first example is the network's input.

    Raises:
        DataRejected: the examples cannot be indexed, or the first one is no tensor.
    """
    whole = False
    if isinstance(data, ExampleSet):
        shape, whole = tuple(data.pixels.shape[1:]), data.whole
    else:
        try:
            first = data[0][0]
        except (IndexError, KeyError, TypeError):
            raise DataRejected(
                "the examples are neither a pair (images, labels) nor a dataset with one example at least",
                hint="Give tensors of examples (N, ...) and labels (N,), or a dataset of (example, label).",
            ) from None
        if hasattr(first, "getbands"):
            shape = (len(first.getbands()), first.height, first.width)
        else:
            array = torch.as_tensor(first)
            shape, whole = tuple(array.shape), not array.is_floating_point() and array.dtype != torch.uint8
            if array.dtype == torch.uint8 and len(shape) == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
                shape = (shape[2], shape[0], shape[1])
    if not shape:
        raise DataRejected("the examples are single numbers", hint="Give tensors (N, ...), one row an example.")
    looked_up = whole and any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules())
    return Preprocess(shape, origin="given", tokens=looked_up)


def examples_of(data: Any, name: str, preprocess: Preprocess, paired: bool = False) -> ExampleSet:
    """A set, from what a library call was given as `name`."""
    if isinstance(data, ExampleSet):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and hasattr(data[0], "shape"):
        return from_tensors(data[0], data[1], preprocess=preprocess, num_classes=None, source=name, paired=paired)
    return from_dataset(data, preprocess=preprocess, num_classes=None, source=name)
