"""Installed adapters: listed from package metadata, imported only when chosen. Loads no torch by itself."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from memaudit.checkpoints import Checkpoint
from memaudit.checkpoints.wrapped import bare_names
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.text import clean, closest
from memaudit.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from memaudit.adapters.base import Adapter, ModelOptions

GROUP = "memaudit.adapters"
# There even where memaudit runs without being installed.
OWN = {
    "timm": "memaudit.adapters.timm:TimmAdapter",
    "torchvision": "memaudit.adapters.torchvision:TorchvisionAdapter",
}
COMPANION = ("transformers", "memaudit-transformers")  # the adapter and the package, by memaudit's own makers


@dataclass(frozen=True)
class Installed:
    """An adapter some installed package declares.

    Attributes:
        name: what `--adapter` takes.
        target: `module:class`, imported only when chosen.
        package: the distribution that declares it.
        error: why it cannot be chosen, where that shows without importing it; empty otherwise.
    """

    name: str
    target: str
    package: str
    version: str
    error: str = ""


def installed() -> list[Installed]:
    """Every adapter by name. Nothing is imported, so a broken plugin is listed like any other."""
    found = {(name, "memaudit"): Installed(name, target, "memaudit", __version__) for name, target in OWN.items()}
    for point in metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist else "?"
        version = point.dist.version if point.dist else "?"
        name = clean(point.name)
        if (name, package) not in found:
            found[name, package] = Installed(name, point.value, clean(package), clean(version), _missing(point.module))
    return sorted(found.values(), key=lambda a: (a.name, a.package))


def choose(checkpoint: Checkpoint, options: ModelOptions, name: str | None = None) -> Adapter:
    """The adapter for `checkpoint`, loaded.

    Args:
        checkpoint: what was read.
        options: what the user said about the model.
        name: an installed adapter's, or `file.py:factory`; `None`: memaudit's own for timm or torchvision, whichever
            has the architecture, and for a folder of transformers memaudit's own companion package. Any
            other plugin or a user's file is never run unless it is named.

    Raises:
        UsageError: no such adapter, or it cannot be imported.
        ModelRejected: the checkpoint is not recognised, or does not load.
    """
    spec = name or options.user_file
    if spec and ":" in spec:
        from memaudit.adapters.user import UserAdapter

        own = UserAdapter.load(checkpoint, replace(options, user_file=spec))
        own.multi_label = options.multi_label
        return own
    from memaudit.network.tied_dropout import restore, split_rules

    tensors, rules = split_rules(checkpoint.tensors)
    checkpoint = replace(checkpoint, tensors=tensors)
    if not (spec or options.arch or checkpoint.facts.architecture) and checkpoint.facts.model_type:
        spec = _companion(checkpoint)
    if spec in (None, *OWN):
        checkpoint = replace(checkpoint, tensors=bare_names(checkpoint.tensors))
    architecture = options.arch or checkpoint.facts.architecture
    renamed = _renamed(architecture) if architecture and spec in (None, "timm") else None
    if renamed is not None:
        checkpoint = replace(checkpoint, tensors=renamed(checkpoint.tensors))
    try:
        loaded = load_class(spec).load(checkpoint, options) if spec else _load_named(checkpoint, options)
        restore(loaded.module, rules)
        loaded.multi_label = options.multi_label
        loaded.renamed = renamed or loaded.renamed
        return loaded
    except MemauditError:
        raise
    except Exception as error:
        raise ModelRejected(
            f"the adapter {clean(spec or 'of its own')!r} failed on {clean(checkpoint.path.name)}: "
            f"{type(error).__name__}: {clean(error)}",
            hint=f"try it alone: memaudit adapters test {clean(spec or 'timm')}",
        ) from error


def _renamed(architecture: str) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    from memaudit.adapters.renamed import in_current_names

    return partial(in_current_names, architecture)


def _load_named(checkpoint: Checkpoint, options: ModelOptions) -> Adapter:
    """With memaudit's own adapter of whichever library has the architecture."""
    from memaudit.adapters.building import library_of
    from memaudit.adapters.named import NamedAdapter, plan_of

    plan = plan_of(checkpoint, options)
    adapter = load_class(library_of(plan.architecture))
    assert issubclass(adapter, NamedAdapter)  # noqa: S101 - both of `OWN` are
    return adapter.realise(plan, checkpoint, options)


def load_class(name: str) -> type[Adapter]:
    """Import the adapter called `name`.

    Raises:
        UsageError: unknown, declared by two packages, not importable, or no adapter.
    """
    adapters = installed()
    matches = [a for a in adapters if a.name == name]
    if not matches:
        raise UsageError(
            f"no adapter {clean(name)!r} is installed{closest(name, {a.name for a in adapters})}",
            hint="list them with: memaudit adapters list; or name a file: --adapter ./my_model.py:build",
        )
    if len(matches) > 1:
        packages = ", ".join(f"{a.package} {a.version}" for a in matches)
        raise UsageError(f"two packages declare the adapter {clean(name)!r}: {packages}", hint="uninstall one of them")
    chosen = matches[0]
    module, _, attribute = chosen.target.partition(":")
    try:
        loaded: object = importlib.import_module(module)
        for part in attribute.split("."):
            loaded = getattr(loaded, part)
    except Exception as error:
        raise UsageError(
            f"the adapter {clean(name)!r} of {chosen.package} {chosen.version} cannot be imported: "
            f"{type(error).__name__}: {clean(error)}",
            hint="repair or uninstall that package",
        ) from error
    from memaudit.adapters.base import Adapter

    if not (isinstance(loaded, type) and issubclass(loaded, Adapter)):
        raise UsageError(
            f"{clean(chosen.target)} of {chosen.package} {chosen.version} is no subclass of memaudit's Adapter",
            hint="repair or uninstall that package",
        )
    return loaded


def _companion(checkpoint: Checkpoint) -> str:
    """The adapter for folders of transformers, where memaudit's own package with it is installed.

    Raises:
        ModelRejected: it is not.
    """
    if any((a.name, a.package) == COMPANION for a in installed()):
        return COMPANION[0]
    raise ModelRejected(
        f"{clean(checkpoint.path.name)} is a transformers model (model_type {checkpoint.facts.model_type!r}), "
        f"which needs the package {COMPANION[1]}",
        hint=f"pip install {COMPANION[1]} (plugins/{COMPANION[1]} in memaudit's repository); "
        "or give a factory: --adapter ./my_model.py:build",
    )


def _missing(module: str) -> str:
    """Why `module` cannot be imported, as far as its top-level package tells without running it."""
    top = module.split(".")[0]
    try:
        return "" if importlib.util.find_spec(top) else f"no module named {clean(top)!r}"
    except (ImportError, ValueError) as error:
        return clean(error)
