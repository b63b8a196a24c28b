"""torchvision's classifiers, called `torchvision:resnet50` here: building them, and how their published weights see.

Nothing is ever downloaded: networks are built without weights, and presets are read from torchvision's own tables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import torchvision
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torchvision import models

PREFIX = "torchvision:"
# What the builders call the image size that position tables and partitions are made for, and its default.
SIZED = {"vit": "image_size", "maxvit": "input_size"}
SIDE = 224
# They hold auxiliary classifiers, used in training alone, and read images as if ImageNet's mean and deviation were 0.5.
AUXILIARY, TRANSFORMED = ("googlenet", "inception_v3"), " with transform_input"


def names() -> list[str]:
    """Every image classifier of the installed torchvision."""
    return [PREFIX + name for name in models.list_models(module=models)]


def is_vision(architecture: str) -> bool:
    """Whether the name is one of torchvision's, existing or not."""
    return architecture.startswith(PREFIX)


def version() -> str:
    """The version of the installed torchvision."""
    return str(torchvision.__version__)


def create(architecture: str, kwargs: Mapping[str, object]) -> nn.Module:
    """An untrained network.

    Args:
        architecture: a name of `names`.
        kwargs: `num_classes`, `in_chans` (the first convolution is exchanged, as users do), `img_size` where the
            architecture is made for one, and the builder's own.

    Raises:
        Exception: whatever torchvision raises for keyword arguments that it does not take.
    """
    name = architecture.removeprefix(PREFIX)
    own: dict[str, Any] = dict(kwargs)
    channels, side = own.pop("in_chans", 3), own.pop("img_size", None)
    if side is not None:
        sized = _sized(name)
        if sized is None:
            raise TypeError(f"{architecture} takes no img_size")
        own[sized] = (side, side) if sized == "input_size" else side
    if name in AUXILIARY:
        own = {"aux_logits": False, "init_weights": False, **own}
    network: nn.Module = models.get_model(name, weights=None, **own)
    return network if channels == 3 else _with_channels(network, int(channels))


def variants(architecture: str) -> list[dict[str, object]]:
    """Settings that add tensors without changing the answers: with the auxiliary classifiers, and without."""
    name = architecture.removeprefix(PREFIX)
    return [{}, {"aux_logits": True}] if name in AUXILIARY else [{}]


@functools.cache
def presets(architecture: str, side: int | None = None) -> dict[str, dict[str, Any]]:
    """How each published set of weights sees images, by its name; the plain one first.

    Args:
        side: only those of this image size, where there are any: what a position table leaves no choice about.
    """
    name = architecture.removeprefix(PREFIX)
    found: dict[str, dict[str, Any]] = {}
    for weights in models.get_model_weights(name):
        if any(end in weights.name for end in ("FEATURES",)):
            continue  # without a classifier
        found[weights.name] = _preset(weights.transforms())
    if name in AUXILIARY:  # their builders turn on `transform_input` for published weights, and for those only
        half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        found = {n + TRANSFORMED: {**p, **half} for n, p in found.items()} | found
    if _sized(name) is not None:
        wanted = side or SIDE
        found = {n: p for n, p in found.items() if p["input_size"][1] == wanted} or found
    return found


def published(sha256: str) -> tuple[str, str] | None:
    """The architecture and the preset of the published file with this hash: torchvision names its files by them."""
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            digest = PurePosixPath(weights.url).stem.rpartition("-")[2]
            if len(digest) == 8 and sha256.startswith(digest):
                return PREFIX + name, weights.name + (TRANSFORMED if name in AUXILIARY else "")
    return None


@contextmanager
def on_meta() -> Iterator[None]:
    """Parameters and buffers made in the body have no memory. Some builders compute with small tensors on the way,
    which the device context `meta` would leave without values (RegNet's widths)."""

    def parameter(_: nn.Module, __: str, value: Any) -> Any:
        return None if value is None or value.is_meta else nn.Parameter(value.to("meta"), value.requires_grad)

    def buffer(_: nn.Module, __: str, value: Any) -> Any:
        return None if value is None or value.is_meta else value.to("meta")

    handles = [
        register_module_parameter_registration_hook(parameter),
        register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sized(name: str) -> str | None:
    return next((keyword for family, keyword in SIZED.items() if name.startswith(family)), None)


def _preset(transform: Any) -> dict[str, Any]:
    """A preset in timm's words. The share is one that gives back the very size the preset resizes to."""
    crop, resize = int(transform.crop_size[0]), int(transform.resize_size[0])
    share = crop / resize
    while math.floor(crop / share) < resize:
        share = math.nextafter(share, 0)
    return {
        "input_size": (3, crop, crop),
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
        "crop_pct": share,
        "interpolation": str(transform.interpolation.value),
    }


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """The network with its first convolution made anew for other images."""
    for path, part in network.named_modules():
        if isinstance(part, nn.Conv2d):
            first = nn.Conv2d(
                channels,
                part.out_channels,
                part.kernel_size,  # type: ignore[arg-type]
                part.stride,  # type: ignore[arg-type]
                part.padding,  # type: ignore[arg-type]
                bias=part.bias is not None,
            )
            owner, _, own = path.rpartition(".")
            setattr(network.get_submodule(owner), own, first)
            return network
    raise TypeError("it has no convolution")
