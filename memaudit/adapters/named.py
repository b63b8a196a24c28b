"""Architectures that have a name in timm or torchvision: said by the user or the checkpoint, or found from the tensors.

One plan serves both libraries; `adapters.timm` and `adapters.torchvision` are the two that a user may ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from memaudit.adapters import vision
from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.building import (
    LIBRARIES,
    architectures,
    build,
    default_config,
    exists,
    installed_version,
    library_of,
)
from memaudit.adapters.identify import MAX_ENLARGEMENT, Candidate, fit, identify, most_parameters
from memaudit.adapters.preprocessing import resolve
from memaudit.adapters.resized import options_for
from memaudit.checkpoints import Checkpoint, Facts, read
from memaudit.checkpoints.load import check_fit, load_strict
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.text import clean, closest

SHOWN = 3  # other ways of preparing images that a report names
# Buffers that are not in the checkpoint may add to it (masks, position tables), but not without bound.
MAX_GROWTH, GROWTH_SLACK = 4, 1 << 28  # times the checkpoint's float32 bytes; bytes


@dataclass(frozen=True)
class Blueprint:
    """What will be built, and why.

    Attributes:
        same: names of this very network, this one first.
    """

    architecture: str
    kwargs: Mapping[str, object]
    reason: str
    alternatives: tuple[str, ...] = ()
    variants: bool = False
    same: tuple[str, ...] = ()


class NamedAdapter(Adapter):
    """A library's architecture, loaded strictly. Subclasses say which library's."""

    kwargs: Mapping[str, object] = MappingProxyType({})

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> NamedAdapter:
        """Build on `meta`, hold against the tensors, then build for real and load.

        Where several architectures fit and compute differently, the first is loaded and `alternatives` names all:
        the caller loads each with `options.arch` and keeps the one that classifies the reference. `presets` are the
        ways in which this very network was published to see images, where nobody says which it was trained with.

        Raises:
            ModelRejected: the tensors do not fit, have no classifier, or belong to no architecture of this library.
            PremiseBroken: a weight is NaN or infinite.
            UsageError: `--arch` or `--model-kwargs` name something the library does not have.
        """
        return cls.realise(plan_of(checkpoint, options, cls.name), checkpoint, options)

    @classmethod
    def realise(cls, planned: Blueprint, checkpoint: Checkpoint, options: ModelOptions) -> NamedAdapter:
        """The network that is `planned`, built, with the checkpoint's weights.

        Raises:
            UsageError: an option cannot be meant for it.
            ModelRejected: the weights are not those of such a network.
        """
        if options.input_size is not None and len(options.input_size) != 3:
            raise UsageError(
                f"{planned.architecture} takes images (C, H, W), --input-size has {len(options.input_size)} numbers",
                hint="for example --input-size 3,224,224",
            )
        plan = _sized(planned, checkpoint, options)
        _check_on_meta(plan, checkpoint, options)
        try:
            network = build(plan.architecture, plan.kwargs, device="cpu")
        except Exception as error:
            raise _unbuildable(plan, options, error) from error
        load_strict(network, checkpoint.tensors, stripped_prefix=checkpoint.stripped_prefix)
        presets = _presets(plan, checkpoint, options)
        adapter = cls(
            network,
            architecture=plan.architecture,
            preprocess=_guess(presets),
            reason=plan.reason,
            alternatives=plan.alternatives,
        )
        adapter.presets, adapter.variants = presets, plan.variants
        adapter.test_size = _test_size(adapter.preprocess, plan, checkpoint, options)
        adapter.kwargs = plan.kwargs
        return adapter

    @property
    def facts(self) -> Facts:
        """Also which network it is."""
        kwargs = dict(self.kwargs)
        classes: Any = kwargs.pop("num_classes", None)
        return replace(super().facts, architecture=self.architecture, model_kwargs=kwargs, num_classes=classes)

    @classmethod
    def reread(cls, architecture: str, **kwargs: Any) -> NamedAdapter:
        """A small network with random weights, written to a file that nobody named and recognised again."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build(architecture, kwargs, device="cpu")
            with torch.no_grad():
                for parameter in network.parameters():  # some norms start at zero, and zero proves nothing
                    parameter.add_(0.1 * torch.randn_like(parameter))
        with TemporaryDirectory(prefix="memaudit-") as folder:
            path = Path(folder) / "model.safetensors"
            save_file(network.state_dict(), path)
            return cls.load(read(path), ModelOptions())


def plan_of(checkpoint: Checkpoint, options: ModelOptions, library: str | None = None) -> Blueprint:
    """Which architecture, from the first of: `--arch`, the checkpoint's own word, its tensors.

    Args:
        library: only this one's architectures.

    Raises:
        UsageError: `--arch` is no name there is.
        ModelRejected: nothing fits, or the network has no classifier.
    """
    facts = checkpoint.facts
    if options.arch is not None:
        return _named(_known(options.arch, library), "--arch", checkpoint, options)
    if facts.architecture and exists(facts.architecture) and library in (None, library_of(facts.architecture)):
        return _named(facts.architecture, f"{facts.origin}: {facts.architecture}", checkpoint, options)
    candidates = _of_library(identify(checkpoint.tensors), library)
    if not candidates:
        named = f"; it names {clean(facts.architecture)!r}, which they do not have" if facts.architecture else ""
        where = " or ".join(f"{name} {installed_version(name)}" for name in ([library] if library else LIBRARIES))
        resized = options_for(checkpoint.tensors) if library in (None, "timm") else ""
        raise ModelRejected(
            f"no architecture of {where} has the tensors of {clean(checkpoint.path.name)}{named}",
            hint=f"they are a Vision Transformer's of other sizes: {resized} (the number of heads, which no tensor "
            "shows, as trained)"
            if resized
            else "name it with --arch, or give a factory with --adapter file.py:name; plugins: memaudit adapters list",
        )
    first = candidates[0]
    return Blueprint(
        first.architecture,
        {**first.kwargs, **options.model_kwargs},
        "names and shapes of its tensors",
        tuple(candidate.architecture for candidate in candidates),
        len(candidates) > 1 and len({candidate.printed for candidate in candidates}) == 1,
        first.same,
    )


def _known(architecture: str, library: str | None) -> str:
    """`architecture`, a name there is in `library`, or in any.

    Raises:
        UsageError: there is none; the message names the closest.
    """
    own = library_of(architecture) if library is None else library
    if exists(architecture) and library_of(architecture) == own:
        return architecture
    near = closest(architecture, (name for name in architectures() if library is None or library_of(name) == own))
    raise UsageError(
        f"{own} {installed_version(own)} has no architecture {clean(architecture)!r}{near}",
        hint="give the exact name, as timm.list_models() prints it, or torchvision:NAME",
    )


def _of_library(candidates: list[Candidate], library: str | None) -> list[Candidate]:
    """The candidates that one library has, by its names."""
    if library is None:
        return candidates
    own = ((c, tuple(name for name in c.same if library_of(name) == library)) for c in candidates)
    return [replace(c, architecture=same[0], same=same) for c, same in own if same]


def _named(architecture: str, reason: str, checkpoint: Checkpoint, options: ModelOptions) -> Blueprint:
    """The plan for an architecture somebody named; what the file says about another one is left out."""
    facts = checkpoint.facts
    same = facts.architecture is not None and facts.architecture.split(".")[0] == architecture.split(".")[0]
    said = {**(facts.model_kwargs if same else {}), **options.model_kwargs}
    fixed = {name: value for name, value in said.items() if value not in (None, "") and name != "num_classes"}
    kwargs = {**fit(architecture, checkpoint.tensors, fixed), **fixed}
    return Blueprint(architecture, kwargs, reason, same=(architecture,))


def _sized(plan: Blueprint, checkpoint: Checkpoint, options: ModelOptions) -> Blueprint:
    """The plan with the image size that was said, where no tensor shows it and the architecture asks for it (Swin).

    Raises:
        UsageError: `--input-size` contradicts the tensors.
    """
    said = options.input_size or checkpoint.facts.preprocess.get("input_size")
    default = default_config(plan.architecture).get("input_size")
    if not isinstance(said, tuple) or said == default or {"img_size", "dynamic_img_size"} & plan.kwargs.keys():
        return plan
    if options.input_size is None and max(said[1:]) > MAX_ENLARGEMENT * max(default or said):
        return plan
    kwargs = {**plan.kwargs, "img_size": said[1] if said[1] == said[2] else said[1:]}
    try:
        network = build(plan.architecture, kwargs, device="meta", most=most_parameters(checkpoint.tensors))
    except Exception:  # it takes no img_size: any image will do
        return plan
    try:
        check_fit(network, checkpoint.tensors)
    except ModelRejected as error:
        if options.input_size is None:
            return plan
        raise UsageError(
            f"{clean(checkpoint.path.name)} was not trained on images of {said[1]} x {said[2]}: {error.message}",
            hint="leave --input-size out: the tensors show the size",
        ) from error
    return replace(plan, kwargs=kwargs)


def _check_on_meta(plan: Blueprint, checkpoint: Checkpoint, options: ModelOptions) -> None:
    """Names, shapes, classes and memory, before anything is allocated."""
    where = clean(checkpoint.path.name)
    classes = plan.kwargs.get("num_classes")
    for said, by in ((options.num_classes, "--num-classes"), (checkpoint.facts.num_classes, "the checkpoint")):
        if options.num_classes is not None and by != "--num-classes":
            continue
        if said is not None and classes is not None and said != classes and (said, classes) != (2, 1):
            raise ModelRejected(
                f"the classifier in {where} has {classes} classes, but {by} says {said}",
                hint=f"if {classes} is right: --num-classes {classes}; else this is another model's checkpoint",
            )
    try:
        network = build(plan.architecture, plan.kwargs, device="meta", most=most_parameters(checkpoint.tensors))
    except Exception as error:
        raise _unbuildable(plan, options, error) from error
    try:
        check_fit(network, checkpoint.tensors)
    except ModelRejected as error:
        raise ModelRejected(
            f"{where} is not {plan.architecture} ({plan.reason}): {error.message}", hint=error.hint
        ) from error
    needed, given = _bytes(network.parameters()) + _bytes(network.buffers()), _bytes(checkpoint.tensors.values())
    if needed > MAX_GROWTH * given + GROWTH_SLACK:
        raise ModelRejected(
            f"{plan.architecture} with {dict(plan.kwargs)} needs {needed:,} bytes for a checkpoint of {given:,}",
            hint="check --model-kwargs against how it was trained",
        )


def _unbuildable(plan: Blueprint, options: ModelOptions, error: Exception) -> MemauditError:
    """The error for keyword arguments timm does not take: the user's fault if they are the user's."""
    if isinstance(error, MemauditError):
        return error
    kind = UsageError if options.model_kwargs else ModelRejected
    shown = ", ".join(f"{clean(k)}={clean(v)}" for k, v in plan.kwargs.items())
    reason, own = f"{type(error).__name__}: {clean(error)}", library_of(plan.architecture)
    return kind(
        f"{own} {installed_version(own)} cannot build {plan.architecture} with {shown}: {reason}",
        hint="check --model-kwargs and the checkpoint's own model_args",
    )


def _presets(plan: Blueprint, checkpoint: Checkpoint, options: ModelOptions) -> tuple[Preprocess, ...]:
    """The ways of seeing images that this network is known with, where nobody says which: the likeliest first.

    Architectures that are equal module by module may still be for other means (vit and deit) or images (xcit 224 and
    384), and torchvision trained its weights in several ways; no tensor shows it. A file that is one of torchvision's
    own, by its hash, is seen as that one was.
    """
    side = plan.kwargs.get("img_size")
    named: dict[str, dict[str, Any]] = {}
    known = vision.published(checkpoint.sha256) if any(map(vision.is_vision, plan.same)) else None
    for name in plan.same:
        if vision.is_vision(name):
            own = vision.presets(name, side if isinstance(side, int) else None)
            if known and known[0] == name and known[1] in own:
                named = {f"torchvision's {known[1]}, which this file is": own[known[1]], **named}
            named |= {f"torchvision's {weights} of {name}": preset for weights, preset in own.items()}
        else:
            named[f"timm's training values for {name}"] = default_config(name)
    tried = [_preprocess(plan, checkpoint, options, origin, config) for origin, config in named.items()]
    different = list({replace(p, origin=""): p for p in reversed(tried)}.values())[::-1]
    if known and known[0] in plan.same:
        return (tried[0],)
    return tuple(different)


def _guess(presets: tuple[Preprocess, ...]) -> Preprocess:
    """The likeliest way, whose origin says that there are others."""
    first, *others = presets
    if not others:
        return first
    shown = ", ".join(p.origin for p in others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    return replace(first, origin=f"{first.origin} (a guess; the same network is known with {shown})")


def _preprocess(
    plan: Blueprint, checkpoint: Checkpoint, options: ModelOptions, origin: str, defaults: dict[str, Any]
) -> Preprocess:
    """Training-time preprocessing, with the channels and the image size that the tensors prove."""
    facts: dict[str, Any] = dict(checkpoint.facts.preprocess)
    channels = plan.kwargs.get("in_chans", defaults["input_size"][0])
    if options.input_size is not None and options.input_size[0] != channels:
        raise UsageError(
            f"--input-size has {options.input_size[0]} channels, the network {channels}",
            hint=f"--input-size {channels},{options.input_size[1]},{options.input_size[2]}",
        )
    for source in (facts, defaults):
        if "input_size" in source:
            source["input_size"] = (channels, *source["input_size"][1:])
    side = plan.kwargs.get("img_size")
    said = facts.get("input_size", ())[1:]
    proven = {"input_size": (channels, side, side)} if isinstance(side, int) and said != (side, side) else {}
    return resolve(options, facts, defaults, origin, proven=proven)


def _test_size(
    used: Preprocess, plan: Blueprint, checkpoint: Checkpoint, options: ModelOptions
) -> tuple[int, int, int] | None:
    """The other size, where the checkpoint or timm gives one for tests and nobody chose."""
    facts, defaults = checkpoint.facts.preprocess, default_config(plan.architecture)
    said = facts if "input_size" in facts else defaults
    size = said.get("test_input_size")
    if options.input_size is not None or not isinstance(size, tuple | list) or len(size) != 3:
        return None
    tested = (used.input_size[0], int(size[1]), int(size[2]))
    return None if tested == used.input_size else tested


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(4 * t.numel() for t in tensors)
