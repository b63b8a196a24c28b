"""From an example to the network's input: geometry (of images alone, on uint8) and normalisation (per batch)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from memaudit.system.memory import to_device

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """How examples become inputs. Three dimensions are an image; anything else is taken as it is.

    Attributes:
        input_size: shape of one input: `(C, H, W)` of an image, `(C, T)` of a signal, `(D,)` of a row of a table.
        crop_pct: share of the resized image that the centre crop keeps; the short side is resized to H / crop_pct.
        interpolation: `bicubic`, `bilinear` or `nearest`.
        mean: per channel, subtracted from values in [0, 1]; empty: no normalisation.
        std: per channel.
        origin: where these values came from (flag, checkpoint, adapter, default), for the report.
        origins: where each value came from, by field.
        crop_mode: timm's names: `center` keeps the aspect ratio and crops, `squash` does not keep it, `border` pads.
        tokens: inputs are whole numbers that the network looks up (token ids), never scaled nor changed.
        masked: inputs are `(2, T)`: token ids, and which of them count.
        exif: `ignore`: the orientation tag of a photograph is left alone, as torchvision and timm do; or `apply`.
        bit_depth: of images with more than 8 bits: their values become floats in [0, 1] of this range; None: they are
            cut at 255, as Pillow does for torchvision and timm.
        exact: images of the network's size are resized and cropped like all others.
        bgr: the network takes its channels as blue, green, red.
        raw: nothing is known of the range of float images: the network takes whatever the arrays hold.
    """

    input_size: tuple[int, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    origin: str = "default"
    crop_mode: str = "center"
    origins: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    tokens: bool = False
    masked: bool = False
    exif: str = "ignore"
    bit_depth: int | None = None
    exact: bool = False
    bgr: bool = False
    raw: bool = False

    @property
    def image(self) -> bool:
        """Whether inputs are images `(C, H, W)`."""
        return len(self.input_size) == 3 and not self.tokens

    @property
    def geometry(self) -> Preprocess:
        """What examples are read by: the network itself applies mean and std."""
        return replace(self, mean=(), std=(), origin="")

    def normalise(self, batch: Tensor) -> Tensor:
        """A batch as it was read (images in [0, 1]) to the network's input; without mean and std, `batch` itself.

        Mean and std are along the first axis of an input: the channels of an image or signal, the columns of a table.
        """
        if self.bgr:
            batch = batch.flip(1)
        if not self.mean:
            return batch
        both = to_device(batch.new_tensor([self.mean, self.std], device="cpu"), batch.device)
        mean, std = both.view(2, 1, -1, *[1] * (batch.dim() - 2)).unbind()
        return (batch - mean) / std
