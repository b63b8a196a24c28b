"""From an image on disk to the network's input: geometry (per image, on uint8) and normalisation (per batch)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memaudit.system.memory import to_device

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """How images become inputs.

    Attributes:
        input_size: `(C, H, W)` of the network's input.
        crop_pct: share of the resized image that the centre crop keeps; the short side is resized to H / crop_pct.
        interpolation: `bicubic`, `bilinear` or `nearest`.
        mean: per channel, subtracted from values in [0, 1]; empty: no normalisation.
        std: per channel.
        origin: where these values came from (flag, checkpoint, adapter, default), for the report.
        origins: where each value came from, by field.
        crop_mode: timm's names: `center` keeps the aspect ratio and crops, `squash` does not keep it, `border` pads.
    """

    input_size: tuple[int, int, int]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    origin: str = "default"
    crop_mode: str = "center"
    origins: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def normalise(self, batch: Tensor) -> Tensor:
        """`(N, C, H, W)` in [0, 1] to the network's input; without mean and std, `batch` itself."""
        if not self.mean:
            return batch
        both = to_device(batch.new_tensor([self.mean, self.std], device="cpu"), batch.device)
        mean, std = both.view(2, 1, -1, 1, 1).unbind()
        return (batch - mean) / std
