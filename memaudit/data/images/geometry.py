"""Resize and crop one image as timm's evaluation transform does, bit for bit, unless it has the size already."""

from __future__ import annotations

import math

from PIL import Image

from memaudit.data.images import RowError
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import UsageError

MAX_PIXELS = 40_000_000

# timm's value where a configuration gives none.
_DEFAULT_CROP = 0.875

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_CROP_MODES = ("center", "squash", "border")


def check_preprocess(preprocess: Preprocess) -> None:
    """Refuse a geometry that no image could go through.

    Raises:
        UsageError: an interpolation or crop mode nobody knows, or a size or crop share out of range.
    """
    if preprocess.interpolation not in _INTERPOLATIONS:
        raise UsageError(f"unknown interpolation '{preprocess.interpolation}'; one of {', '.join(_INTERPOLATIONS)}")
    if preprocess.crop_mode not in _CROP_MODES:
        raise UsageError(f"unknown crop mode '{preprocess.crop_mode}'; one of {', '.join(_CROP_MODES)}")
    if not preprocess.image:
        size = ", ".join(map(str, preprocess.input_size))
        raise UsageError(
            f"the network takes examples of shape ({size}), which no image has",
            hint="give arrays: .npz, .safetensors, .parquet, or one .npy file an example",
        )
    channels, height, width = preprocess.input_size
    if min(channels, height, width) < 1 or height * width > MAX_PIXELS:
        raise UsageError(f"input size {channels}x{height}x{width} is not one an image can have; give C,H,W")
    if preprocess.crop_pct < 0 or not math.isfinite(preprocess.crop_pct):
        raise UsageError(f"crop_pct {preprocess.crop_pct} is not a share of the image; usual values are 0.8 to 1")


def at_size(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """`image` at the network's height and width.

    One that has that size already is taken as it is, like an array row: its owner prepared it, and cropping it again
    would show the network less than it was trained on (a twin's reference accuracy fell from 0.86 to 0.29).

    Raises:
        RowError: it is so long and narrow that resizing it would need more than 40 megapixels.
    """
    _, height, width = preprocess.input_size
    if image.size == (width, height) and not preprocess.exact:
        return image
    share = preprocess.crop_pct or _DEFAULT_CROP
    target = (math.floor(height / share), math.floor(width / share))
    new_height, new_width = _resized(image.height, image.width, target, preprocess.crop_mode)
    if new_height * new_width > MAX_PIXELS:
        raise RowError(
            f"{image.width} x {image.height} is too narrow: resized it would have {new_width} x {new_height}"
        )
    if min(new_height, new_width) < 1:
        raise RowError(f"{image.width} x {image.height} is too narrow: nothing is left of it when resized")
    if (new_height, new_width) != (image.height, image.width):
        image = image.resize((new_width, new_height), _INTERPOLATIONS[preprocess.interpolation])
    return _centre(image, height, width, _fill(image, preprocess))


def _resized(height: int, width: int, target: tuple[int, int], mode: str) -> tuple[int, int]:
    """Size before cropping. Each branch rounds as the transform it stands for, which is not the same in all."""
    if mode == "squash":
        return target
    if mode == "center" and target[0] == target[1]:
        longer = int(target[0] * max(height, width) / min(height, width))
        return (longer, target[0]) if width <= height else (target[0], longer)
    ratios = (height / target[0], width / target[1])
    ratio = max(ratios) if mode == "border" else min(ratios)
    return round(height / ratio), round(width / ratio)


def _fill(image: Image.Image, preprocess: Preprocess) -> int | tuple[int, ...]:
    """Colour of padding: the mean for `border`, else black."""
    if preprocess.crop_mode != "border" or not preprocess.mean:
        return 0
    fill = tuple(round(255 * value) for value in preprocess.mean)
    return fill if len(fill) == len(image.getbands()) > 1 else fill[0]


def _centre(image: Image.Image, height: int, width: int, fill: int | tuple[int, ...]) -> Image.Image:
    """The middle `height` x `width` of `image`, padded where it is smaller."""
    if image.height < height or image.width < width:
        size = (max(image.width, width), max(image.height, height))
        canvas = Image.new(image.mode, size, fill)
        canvas.paste(image, (max(0, width - image.width) // 2, max(0, height - image.height) // 2))
        image = canvas
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
