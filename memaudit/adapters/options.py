"""What a user may say about a model, read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads torch
    from memaudit.data import Arrays


@dataclass(frozen=True)
class ModelOptions:
    """What the user said about the model; `None` means the checkpoint or the adapter decides.

    Attributes:
        crop_pct, crop_mode, interpolation: how images come to the input size.
        exif: `ignore` or `apply`: whether photographs are turned by their tag.
        bit_depth: bits of images that have more than 8, or `clip`: cut at 255.
        channel_order: `rgb` or `bgr`.
        multi_label: an example may have several labels at once.
        arrays: what the examples are, where they are arrays: the input size unless something else says it.
    """

    arch: str | None = None
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    exif: str | None = None
    bit_depth: int | str | None = None
    channel_order: str | None = None
    user_file: str | None = None
    multi_label: bool = False
    arrays: Arrays | None = None
