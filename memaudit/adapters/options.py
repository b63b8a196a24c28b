"""What a user may say about a model, read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelOptions:
    """What the user said about the model; `None` means the checkpoint or the adapter decides."""

    arch: str | None = None
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, int, int] | None = None
    user_file: str | None = None
