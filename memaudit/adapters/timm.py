"""The adapter for timm's architectures: named by the user or the checkpoint, or told from the tensors alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.building import build, default_config, exists
from memaudit.adapters.identify import MAX_ENLARGEMENT, Candidate, fit, identify, most_parameters
from memaudit.adapters.preprocessing import resolve
from memaudit.checkpoints import Checkpoint, read
from memaudit.checkpoints.load import check_fit, load_strict
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.text import clean, closest

# Buffers that are not in the checkpoint may add to it (masks, position tables), but not without bound.
MAX_GROWTH, GROWTH_SLACK = 4, 1 << 28  # times the checkpoint's float32 bytes; bytes


@dataclass(frozen=True)
class _Plan:
    """What will be built, and why."""

    architecture: str
    kwargs: Mapping[str, object]
    reason: str
    alternatives: tuple[str, ...] = ()
    variants: bool = False
    fed_differently: tuple[str, ...] = ()


class TimmAdapter(Adapter):
    """A timm architecture, loaded strictly.

    Attributes:
        fed_differently: names of this very network whose default mean, std or image size is another one, where neither
            the tensors nor anybody say which it was trained with; `preprocess.origin` mentions them.
    """

    fed_differently: tuple[str, ...] = ()

    name: ClassVar[str] = "timm"

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> str | None:
        """The architecture the checkpoint names, or that its tensors' names and shapes show."""
        named = checkpoint.facts.architecture
        if named and exists(named):
            return f"{checkpoint.facts.origin}: {named}"
        if checkpoint.facts.model_type:
            return None
        return "names and shapes of its tensors" if identify(checkpoint.tensors) else None

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> TimmAdapter:
        """Build on `meta`, hold against the tensors, then build for real and load.

        Where several architectures fit and compute differently, the first is loaded and `alternatives` names all:
        the caller loads each with `options.arch` and keeps the one that classifies the reference.

        Raises:
            ModelRejected: the tensors do not fit, have no classifier, or belong to no timm architecture.
            PremiseBroken: a weight is NaN or infinite.
            UsageError: `--arch` or `--model-kwargs` name something timm does not have.
        """
        plan = _sized(_plan(checkpoint, options), checkpoint, options)
        _check_on_meta(plan, checkpoint, options)
        try:
            network = build(plan.architecture, plan.kwargs, device="cpu")
        except Exception as error:
            raise _unbuildable(plan, options, error) from error
        load_strict(network, checkpoint.tensors, stripped_prefix=checkpoint.stripped_prefix)
        adapter = cls(
            network,
            architecture=plan.architecture,
            preprocess=_preprocess(plan, checkpoint, options),
            reason=plan.reason,
            alternatives=plan.alternatives,
        )
        adapter.fed_differently, adapter.variants = plan.fed_differently, plan.variants
        adapter.test_size = _test_size(adapter.preprocess, plan, checkpoint, options)
        return adapter

    @classmethod
    def example(cls) -> TimmAdapter:
        """timm's smallest ResNet with random weights, written to a file that nobody named and recognised again."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build("test_resnet", {"num_classes": 5}, device="cpu")
            with torch.no_grad():
                for parameter in network.parameters():  # timm starts some norms at zero, and zero proves nothing
                    parameter.add_(0.1 * torch.randn_like(parameter))
        with TemporaryDirectory(prefix="memaudit-") as folder:
            path = Path(folder) / "model.safetensors"
            save_file(network.state_dict(), path)
            return cls.load(read(path), ModelOptions())


def _plan(checkpoint: Checkpoint, options: ModelOptions) -> _Plan:
    """Which architecture, from the first of: `--arch`, the checkpoint's own word, its tensors.

    Raises:
        UsageError: `--arch` is no name of timm's.
        ModelRejected: nothing fits, or the network has no classifier.
    """
    facts = checkpoint.facts
    if options.arch is not None:
        if not exists(options.arch):
            near = closest(options.arch, timm.list_models())
            raise UsageError(
                f"timm {timm.__version__} has no architecture {clean(options.arch)!r}{near}",
                hint="give the exact name, as timm.list_models() prints it",
            )
        return _named(options.arch, "--arch", checkpoint, options)
    if facts.architecture and exists(facts.architecture):
        return _named(facts.architecture, f"{facts.origin}: {facts.architecture}", checkpoint, options)
    candidates = identify(checkpoint.tensors)
    if not candidates:
        named = f"; it names {clean(facts.architecture)!r}, which timm does not have" if facts.architecture else ""
        raise ModelRejected(
            f"no architecture of timm {timm.__version__} has the tensors of {clean(checkpoint.path.name)}{named}",
            hint="name it with --arch, or give a factory with --adapter file.py:name; plugins: memaudit adapters list",
        )
    first = candidates[0]
    return _Plan(
        first.architecture,
        {**first.kwargs, **options.model_kwargs},
        "names and shapes of its tensors",
        tuple(candidate.architecture for candidate in candidates),
        len(candidates) > 1 and len({candidate.printed for candidate in candidates}) == 1,
        _fed_differently(first, checkpoint, options),
    )


def _named(architecture: str, reason: str, checkpoint: Checkpoint, options: ModelOptions) -> _Plan:
    """The plan for an architecture somebody named; what the file says about another one is left out."""
    facts = checkpoint.facts
    same = facts.architecture is not None and facts.architecture.split(".")[0] == architecture.split(".")[0]
    said = {**(facts.model_kwargs if same else {}), **options.model_kwargs}
    fixed = {name: value for name, value in said.items() if value not in (None, "") and name != "num_classes"}
    return _Plan(architecture, {**fit(architecture, checkpoint.tensors, fixed), **fixed}, reason)


def _sized(plan: _Plan, checkpoint: Checkpoint, options: ModelOptions) -> _Plan:
    """The plan with the image size that was said, where no tensor shows it and the architecture must be told (Swin).

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


def _fed_differently(candidate: Candidate, checkpoint: Checkpoint, options: ModelOptions) -> tuple[str, ...]:
    """Names of the same network whose default mean, std or image size is another one, and nobody said which.

    Architectures that are equal module by module may still be for other means (vit and deit) or images (xcit 224 and
    384); no tensor shows it.
    """
    said = checkpoint.facts.preprocess
    flags = {"mean": options.mean, "std": options.std, "input_size": options.input_size}
    unsaid = [field for field, flag in flags.items() if flag is None and field not in said]
    names: dict[tuple[object, ...], str] = {}
    for name in candidate.same:
        config = default_config(name)
        names.setdefault(tuple(config.get(field) for field in unsaid), name)
    return tuple(name for name in names.values() if name != candidate.architecture)


def _check_on_meta(plan: _Plan, checkpoint: Checkpoint, options: ModelOptions) -> None:
    """Names, shapes, classes and memory, before anything is allocated."""
    where = clean(checkpoint.path.name)
    classes = plan.kwargs.get("num_classes")
    for said, by in ((options.num_classes, "--num-classes"), (checkpoint.facts.num_classes, "the checkpoint")):
        if options.num_classes is not None and by != "--num-classes":
            continue
        if said is not None and classes is not None and said != classes:
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


def _unbuildable(plan: _Plan, options: ModelOptions, error: Exception) -> MemauditError:
    """The error for keyword arguments timm does not take: the user's fault if they are the user's."""
    if isinstance(error, MemauditError):
        return error
    kind = UsageError if options.model_kwargs else ModelRejected
    shown = ", ".join(f"{clean(k)}={clean(v)}" for k, v in plan.kwargs.items())
    reason = f"{type(error).__name__}: {clean(error)}"
    return kind(
        f"timm {timm.__version__} cannot build {plan.architecture} with {shown}: {reason}",
        hint="check --model-kwargs and the checkpoint's own model_args",
    )


def _preprocess(plan: _Plan, checkpoint: Checkpoint, options: ModelOptions) -> Preprocess:
    """Training-time preprocessing, with the channels and the image size that the tensors prove."""
    defaults = default_config(plan.architecture)
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
    origin = f"timm's training values for {plan.architecture}"
    if plan.fed_differently:
        origin += f" (the same network has others as {', '.join(plan.fed_differently)})"
    return resolve(options, facts, defaults, origin, proven=proven)


def _test_size(
    used: Preprocess, plan: _Plan, checkpoint: Checkpoint, options: ModelOptions
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
