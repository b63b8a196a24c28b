"""What a `preprocessor_config.json` says of images: resize, crop, mean and std, in the words of `Facts.preprocess`.

`size` has three forms, which a processor's kind decides: one number, `height` and `width`, or `shortest_edge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
# From this side on, transformers' ConvNextImageProcessor squashes instead of cropping.
CROPPED_BELOW = 384


def from_processor(raw: Mapping[str, Any]) -> dict[str, object]:
    """The raw values of `raw`, still unchecked, by the names of timm's own configuration.

    What only the processor's code says (a longest edge, padding) is left out, and stays a question.
    """
    pretrained = raw.get("pretrained_cfg")
    if isinstance(pretrained, Mapping):  # transformers' wrapper of timm
        return dict(pretrained)
    plain = raw.get("resample")
    return {
        **_values(raw),
        **_geometry(raw),
        "interpolation": INTERPOLATIONS.get(plain) if type(plain) is int else None,
        "channel_order": "bgr" if raw.get("do_flip_channel_order") else None,
    }


def _values(raw: Mapping[str, Any]) -> dict[str, object]:
    """Mean and std of images in [0, 1]: a processor multiplies bytes by its factor, then takes its own off."""
    factor = raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        return {}
    scale, offset = 255 * factor, 1.0 if raw.get("rescale_offset") else 0.0
    kept = raw.get("do_normalize") is False
    mean, std = ([0.0], [1.0]) if kept else (_numbers(raw.get("image_mean")), _numbers(raw.get("image_std")))
    again = _numbers(raw.get("image_std")) if raw.get("include_top") else [1.0]  # EfficientNet's divides twice
    if not (mean and std and again):
        return {}
    if math.isclose(scale, 1, rel_tol=1e-4) and not offset and again == [1.0]:
        return {"mean": mean, "std": std}
    longest = max(len(mean), len(std), len(again))
    mean, std, again = (v * longest if len(v) == 1 else v for v in (mean, std, again))
    return {
        "mean": [(n + offset) / scale for n in mean],
        "std": [n * more / scale for n, more in zip(std, again, strict=False)],
    }


def _numbers(values: Any) -> list[float]:
    """The numbers of a list of nothing else; empty where it is none."""
    fits = isinstance(values, list) and all(isinstance(n, int | float) for n in values)
    return [float(n) for n in values] if fits else []


def _geometry(raw: Mapping[str, Any]) -> dict[str, object]:
    """`input_size`, `crop_pct` and `crop_mode`; nothing where the images keep no fixed size."""
    size = raw.get("size")
    crop = _sides(raw.get("crop_size")) if raw.get("do_center_crop") else None
    if raw.get("do_resize") is False:
        return {} if crop is None else {"input_size": [3, *crop]}
    whole = _sides(size)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    share = raw.get("crop_pct")
    if type(size) is int and (crop is not None or isinstance(share, float)):
        whole, edge = None, size  # one number, of the short side where a crop follows
    if whole is not None:
        kept = crop or whole
        return {"input_size": [3, *kept], "crop_mode": "squash", "crop_pct": _share(kept[0], whole[0])}
    if type(edge) is not int or edge < 1:
        return {}
    if crop is not None:
        return {"input_size": [3, *crop], "crop_mode": "center", "crop_pct": _share(crop[0], edge)}
    if isinstance(share, float) and 0 < share <= 1:
        squashed = {"input_size": [3, edge, edge], "crop_mode": "squash", "crop_pct": 1.0}
        return squashed if edge >= CROPPED_BELOW else {**squashed, "crop_mode": "center", "crop_pct": share}
    return {}


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width, from one number or from both."""
    if type(size) is int:
        return size, size
    if isinstance(size, Mapping):
        height, width = size.get("height"), size.get("width")
        if type(height) is int and type(width) is int:
            return height, width
    return None


def _share(kept: int, resized: int) -> float:
    """The share `kept` is of `resized`, such that `floor(kept / share)` is `resized` again."""
    share = kept / max(1, resized)
    while share > 0 and math.floor(kept / share) < resized:
        share = math.nextafter(share, 0)
    return share
