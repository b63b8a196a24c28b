"""Building architectures by exact name: without weights, without network, and never larger than expected.

A name is timm's, or torchvision's behind `torchvision:`; nobody above this file asks which.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from memaudit.adapters import vision
from memaudit.errors import ModelRejected

# Never passed on: they would fetch or read other weights than the checkpoint's, or return no logits.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")


# The libraries whose architectures have names, and the version of each that is installed.
LIBRARIES = ("timm", "torchvision")


def library_of(architecture: str) -> str:
    """Which of `LIBRARIES` the name belongs to, existing or not."""
    return "torchvision" if vision.is_vision(architecture) else "timm"


def installed_version(library: str) -> str:
    """The version of one of `LIBRARIES`."""
    return vision.version() if library == "torchvision" else str(timm.__version__)


def architectures() -> list[str]:
    """Every name there is, timm's first."""
    return [*timm.list_models(), *vision.names()]


def exists(architecture: str) -> bool:
    """Whether a library has exactly this architecture (timm: with or without a known pretrained tag)."""
    if vision.is_vision(architecture):
        return architecture in vision.names()
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        return False
    return not tag or get_pretrained_cfg(architecture, allow_unregistered=False) is not None


def variants(architecture: str) -> list[dict[str, object]]:
    """Arguments that give one architecture several sets of tensors, and the same answers; the usual one first."""
    return vision.variants(architecture) if vision.is_vision(architecture) else [{}]


def default_config(architecture: str) -> dict[str, Any]:
    """How an architecture was trained to see images, in the words of timm's `default_cfg`; empty where nobody says."""
    if vision.is_vision(architecture):
        return dict(next(iter(vision.presets(architecture).values()), {})) if exists(architecture) else {}
    config = get_pretrained_cfg(architecture, allow_unregistered=False)
    return dict(config.to_dict()) if config is not None else {}


def build(architecture: str, kwargs: Mapping[str, object], *, device: str, most: int | None = None) -> nn.Module:
    """A new, untrained network.

    Args:
        architecture: an exact name.
        kwargs: `num_classes`, `in_chans`, `img_size` and the builder's own, already checked to be plain values.
        device: `meta` for shapes alone, `cpu` to load into.
        most: give up once more parameter tensors than this were made; keyword arguments from a file could otherwise
            ask for a network that takes hours to build.

    Raises:
        ModelRejected: it grows past `most`.
        Exception: whatever the library raises for keyword arguments that it does not take.
    """
    if refused := sorted(set(kwargs) & set(REFUSED)):
        raise TypeError(f"{', '.join(refused)} cannot be set")
    if vision.is_vision(architecture):
        place = vision.on_meta() if device == "meta" else nullcontext()
        with _quiet(), at_most(most, architecture), place:
            return vision.create(architecture, kwargs)
    with _quiet(), at_most(most, architecture), torch.device(device):
        return timm.create_model(architecture, pretrained=False, **kwargs)  # type: ignore[no-any-return]


@contextmanager
def at_most(most: int | None, architecture: str) -> Iterator[None]:
    """Nothing with more parameter tensors than `most` is built in the body.

    Raises:
        ModelRejected: `architecture` grows past it.
    """
    if most is None:
        yield
        return
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ModelRejected(
                f"{architecture} with these keyword arguments is larger than the checkpoint",
                hint="check --arch and --model-kwargs against how it was trained",
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's log lines and deprecation warnings, which are about its code, not about the checkpoint."""
    logger = logging.getLogger("timm")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
