"""Building timm architectures by exact name: without weights, without network, and never larger than expected."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from memaudit.errors import ModelRejected

# Never passed on: they would fetch or read other weights than the checkpoint's, or return no logits.
REFUSED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")


def exists(architecture: str) -> bool:
    """Whether timm's registry has exactly this architecture (with or without a known pretrained tag)."""
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        return False
    return not tag or get_pretrained_cfg(architecture, allow_unregistered=False) is not None


def default_config(architecture: str) -> dict[str, Any]:
    """timm's `default_cfg` of an architecture: training-time input size, mean, std, names of first and last layer."""
    config = get_pretrained_cfg(architecture, allow_unregistered=False)
    return dict(config.to_dict()) if config is not None else {}


def build(architecture: str, kwargs: Mapping[str, object], *, device: str, most: int | None = None) -> nn.Module:
    """A new, untrained network.

    Args:
        architecture: an exact registry name.
        kwargs: for `timm.create_model`, already checked to be plain values.
        device: `meta` for shapes alone, `cpu` to load into.
        most: give up once more parameter tensors than this were made; keyword arguments from a file could otherwise
            ask for a network that takes hours to build.

    Raises:
        ModelRejected: it grows past `most`.
        Exception: whatever timm raises for keyword arguments that it does not take.
    """
    if refused := sorted(set(kwargs) & set(REFUSED)):
        raise TypeError(f"{', '.join(refused)} cannot be set")
    with _quiet(), _at_most(most, architecture), torch.device(device):
        return timm.create_model(architecture, pretrained=False, **kwargs)  # type: ignore[no-any-return]


@contextmanager
def _at_most(most: int | None, architecture: str) -> Iterator[None]:
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
    """Without timm's log lines and deprecation warnings, which are about its code and not about the checkpoint."""
    logger = logging.getLogger("timm")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
