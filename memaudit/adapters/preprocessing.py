"""Which preprocessing a model gets: the user's flags, then the checkpoint's own facts, then the adapter's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memaudit.adapters.options import ModelOptions
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import UsageError

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
# Each with the flag that settles it.
FLAGS = {
    "input_size": "--input-size",
    "mean": "--mean",
    "std": "--std",
    "crop_pct": "--crop-pct",
    "interpolation": "--interpolation",
    "crop_mode": "--crop-mode",
}
FIELDS = tuple(FLAGS)
# Who leaves no doubt; a value from anybody else (an architecture's published weights, a default) is a guess.
SAID = frozenset({"flags", "tensors", "checkpoint", "arrays", "config.json", "given", "examples"})


def resolve(
    options: ModelOptions,
    facts: Mapping[str, Any],
    defaults: Mapping[str, Any],
    default_origin: str,
    *,
    proven: Mapping[str, Any] | None = None,
) -> Preprocess:
    """Each value from the first source that has it; `origin` names the sources that were used.

    Args:
        options: the user's `--mean`, `--std`, `--input-size`.
        facts: of the checkpoint, already checked.
        defaults: of the architecture (timm's training-time `default_cfg`).
        default_origin: what to call them.
        proven: what the shapes of the tensors leave no choice about (`input_size`); between flags and facts.

    Raises:
        UsageError: nothing says the input size, or mean and std do not have one positive value per channel.
    """
    flags = {field: getattr(options, field) for field in FIELDS}
    arrays = {"input_size": options.arrays.shape} if options.arrays else {}
    named = {"flags": flags, "tensors": proven or {}, "checkpoint": facts, default_origin: defaults}
    sources: dict[str, Mapping[str, Any]] = {**named, "arrays": arrays}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for field in FIELDS:
        for origin, source in sources.items():
            if _usable(field, source.get(field)):
                values[field] = source[field]
                origins[field] = origin
                break
    if "input_size" not in values:
        raise UsageError(
            "nothing says the network's input size",
            hint="give it, for example: --input-size 3,224,224; or '(30)' where an input is a row of 30 numbers",
        )
    size = tuple(values["input_size"])
    channels = size[0]
    for field, flag in (("mean", options.mean), ("std", options.std)):
        if field in values and flag is None:
            values[field] = _per_channel(tuple(values[field]), channels)
    _check(values, channels)
    return Preprocess(
        input_size=size,
        crop_pct=float(values.get("crop_pct", 1.0)),
        interpolation=values.get("interpolation", "bicubic"),
        mean=tuple(values.get("mean", ())),
        std=tuple(values.get("std", ())),
        origin=", ".join(dict.fromkeys(origins.values())),
        origins=tuple(origins.items()),
        crop_mode=values.get("crop_mode", "center"),
        exif=options.exif or "ignore",
        bit_depth=options.bit_depth if isinstance(options.bit_depth, int) else None,
        exact=options.crop_pct is not None,
        bgr=(options.channel_order or facts.get("channel_order")) == "bgr",
    )


def guessed(preprocess: Preprocess, *, transform: bool = False) -> dict[str, str]:
    """What of `preprocess` nobody said, with the flag that settles each: of images alone, for arrays come as they are.

    Args:
        transform: the user's own code normalises, whatever mean and std are.
    """
    if not preprocess.image:
        return {}
    origins = dict(preprocess.origins)
    left = ("mean", "std") if transform else ()
    return {f: flag for f, flag in FLAGS.items() if origins.get(f) not in SAID and f not in left}


def _usable(field: str, value: object) -> bool:
    """timm's `random` interpolation is a training augmentation, and no answer to how one image is resized."""
    return value in INTERPOLATIONS if field == "interpolation" else value not in (None, "")


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A declared colour mean for another number of channels: its average for each, as for grey images."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _check(values: Mapping[str, Any], channels: int) -> None:
    mean, std = values.get("mean", ()), values.get("std", ())
    if len(mean) != len(std) or len(mean) not in (0, channels):
        raise UsageError(
            f"the network has {channels} input channels, but mean has {len(mean)} values and std {len(std)}",
            hint="give one --mean and one --std value per channel",
        )
    if any(not value > 0 for value in std):
        raise UsageError(
            f"std must be positive, found {list(std)}", hint="leave --std out, or give the training values"
        )
