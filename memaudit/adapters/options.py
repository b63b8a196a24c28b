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
        multi_label: an example may have several labels at once.
        arrays: what the examples are, where they are arrays: the input size unless something else says it.
    """

    arch: str | None = None
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: tuple[int, ...] | None = None
    user_file: str | None = None
    multi_label: bool = False
    arrays: Arrays | None = None
