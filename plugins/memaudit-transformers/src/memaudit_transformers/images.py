"""How images reach the network: what the folder's own image processor does, measured instead of looked up.

The processors of transformers have a class for nearly every model, each with rules of its own for the three forms of
`size`, for cropping and for colours. What one does shows in what it makes of a few pictures: plain black, white and red
give mean, deviation and the order of colours, two patterned ones the geometry. A processor whose work memaudit's own
steps do not reproduce is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from memaudit.adapters.options import ModelOptions
from memaudit.adapters.preprocessing import resolve
from memaudit.data.images.geometry import at_size
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import MemauditError, ModelRejected, UsageError
from memaudit.text import clean
from memaudit_transformers.folder import Saved, read_json
from memaudit_transformers.library import quiet

FILE = "preprocessor_config.json"
MAX_SIDE = 4096
# Mean difference of two pixels in [0, 1]: at most 0.007 where the geometry is the same but for a pixel, 0.019 and more
# at 224 pixels where it is another one.
CLOSE = 0.012
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
BY_HAND = "give --mean, --std and --input-size: the file is then not asked"


@dataclass(frozen=True)
class Seen:
    """What the network is fed.

    Attributes:
        reversed: colours come in the order blue, green, red.
    """

    preprocess: Preprocess
    reversed: bool = False


def prepare(saved: Saved, options: ModelOptions) -> Seen:
    """From an image to the network's input: the user's flags, then the folder's processor, then its class's defaults.

    Raises:
        ModelRejected: the processor does something that memaudit does not, or cannot be made.
        UsageError: nothing says mean, deviation and size.
    """
    flags = (options.mean, options.std, options.input_size)
    if all(flag is not None for flag in flags):
        return Seen(resolve(options, {}, {}, ""))
    raw = read_json(saved.folder / FILE)
    if raw is None:
        raw = (read_json(saved.folder / "processor_config.json") or {}).get("image_processor")
    processor = _processor(saved, raw)
    if processor is None:
        return Seen(resolve(options, {}, _size_of(saved), "config.json"))
    try:
        with quiet():
            seen = _measured(processor, _channels(saved))
    except MemauditError:
        raise
    except Exception as error:
        raise ModelRejected(
            f"{type(processor).__name__} fails on plain pictures: {type(error).__name__}: {clean(str(error), 300)}",
            hint=BY_HAND,
        ) from error
    found = seen.preprocess
    said = {"mean": found.mean, "std": found.std, "input_size": found.input_size, "crop_pct": found.crop_pct,
            "interpolation": found.interpolation, "crop_mode": found.crop_mode}  # fmt: skip
    if raw is not None:
        return replace(seen, preprocess=resolve(options, said, {}, FILE))
    if size := _size_of(saved):  # a default processor is for the size of the published models
        said |= {**size, "crop_pct": 1.0, "crop_mode": "squash"}
    origin = f"transformers' values for {saved.config.model_type}, no {FILE} says them"
    return replace(seen, preprocess=resolve(options, {}, said, origin))


def _processor(saved: Saved, raw: dict[str, Any] | None) -> Any:
    """The image processor of the folder, or the default one of the model type; `None` where it has none."""
    listed = IMAGE_PROCESSOR_MAPPING_NAMES.get(saved.config.model_type)
    default = _names(listed)
    known = {name for entry in IMAGE_PROCESSOR_MAPPING_NAMES.values() for name in _names(entry)}
    given = raw or {}
    if given.get("auto_map"):
        raise ModelRejected(f"{FILE} names code of its own (auto_map), which is never run", hint=BY_HAND)
    said = given.get("image_processor_type") or given.get("feature_extractor_type")
    name = str(said or "").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if said and name not in known:
        raise ModelRejected(
            f"transformers {transformers.__version__} has no image processor {clean(said)!r}", hint=BY_HAND
        )
    name = name or (default[0] if default else "")
    if not name:
        if raw is not None:
            raise ModelRejected(f"{FILE} does not say which image processor it is for", hint=BY_HAND)
        return None
    try:
        with quiet():
            return getattr(transformers, name).from_dict(given)
    except Exception as error:
        raise ModelRejected(
            f"{FILE} does not fit {name}: {type(error).__name__}: {clean(str(error), 300)}", hint=BY_HAND
        ) from error


def _names(entry: object) -> list[str]:
    """The classes of a model type, the one on torchvision first."""
    if isinstance(entry, dict):
        return [n for key in ("torchvision", "pil") if isinstance(n := entry.get(key), str)]
    return [entry] if isinstance(entry, str) else []


def _channels(saved: Saved) -> int:
    vision = getattr(saved.config, "vision_config", saved.config)
    channels = getattr(vision, "num_channels", 3)
    return channels if type(channels) is int and 0 < channels <= 64 else 3


def _size_of(saved: Saved) -> dict[str, Any]:
    """`input_size` where the network's own settings say it."""
    size = getattr(getattr(saved.config, "vision_config", saved.config), "image_size", None)
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if type(height) is int and type(width) is int and 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        return {"input_size": (_channels(saved), height, width)}
    return {}


# ---- measured ---------------------------------------------------------------------------------------------------


def _measured(processor: Any, channels: int) -> Seen:
    name = type(processor).__name__
    black, white = (_run(processor, np.full((channels, 96, 96), value, np.uint8)) for value in (0, 255))
    low, high = black.mean((1, 2)), white.mean((1, 2))
    flat = all(bool((t - t.mean((1, 2), keepdim=True)).abs().max() < 1e-3) for t in (black, white))
    if not flat or black.shape[0] != channels or not bool((high > low).all()):
        raise ModelRejected(f"{name} does more to an image than resize, crop and normalise it", hint=BY_HAND)
    size = (channels, int(black.shape[1]), int(black.shape[2]))
    if max(size) > MAX_SIDE:
        raise ModelRejected(f"{name} makes images of {size[1]} x {size[2]}", hint=BY_HAND)
    turned = _reversed(processor, channels, low, high)
    std = 1 / (high - low)
    mean = -low * std
    linear = Preprocess(size, mean=_rounded(mean), std=_rounded(std))
    patterns = [_pattern(height, width, channels, size) for height, width in ((1.31, 1.0), (1.0, 1.53))]
    wanted = [_run(processor, p) for p in patterns]
    if any(tuple(w.shape) != size for w in wanted):
        raise ModelRejected(f"{name} makes images of other shapes than {size[1]} x {size[2]}", hint=BY_HAND)
    best, gap = linear, float("inf")
    for tried in _geometries(processor, linear):
        found = max(_gap(p, w, tried) for p, w in zip(patterns, wanted, strict=True))
        if found < gap:
            best, gap = tried, found
    if not gap < CLOSE:
        raise ModelRejected(
            f"{name} resizes or crops in a way that memaudit does not (a pixel differs by {gap:.2f} on average)",
            hint=BY_HAND,
        )
    if turned:
        best = replace(best, mean=best.mean[::-1], std=best.std[::-1])
    return Seen(best, turned)


def _run(processor: Any, image: np.ndarray[Any, Any]) -> Tensor:
    """What the processor makes of one `(C, H, W)` uint8 image, as a float `(C, H, W)` tensor."""
    values = processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    if not isinstance(values, Tensor) or values.dim() != 4 or len(values) != 1:
        raise ModelRejected(f"{type(processor).__name__} gives no image (C, H, W)", hint=BY_HAND)
    return values[0].float()


def _reversed(processor: Any, channels: int, low: Tensor, high: Tensor) -> bool:
    """Whether a red picture comes out in the last channel."""
    if channels != 3:
        return False
    red = np.zeros((3, 96, 96), np.uint8)
    red[0] = 255
    lit = (_run(processor, red).mean((1, 2)) - low) / (high - low) > 0.5
    if lit.tolist() not in ([True, False, False], [False, False, True]):
        raise ModelRejected(f"{type(processor).__name__} mixes colours", hint=BY_HAND)
    return bool(lit[2])


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Without the noise of float32 arithmetic: 0.485, not 0.48500001."""
    return tuple(float(f"{v:.6g}") + 0.0 for v in values.double().tolist())


def _pattern(height: float, width: float, channels: int, size: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """A picture of waves, larger than the input by 1.6; so smooth that a crop one pixel off hardly shows."""
    rows, columns = round(1.6 * height * size[1]), round(1.6 * width * size[2])
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64) / (1.6 * max(12, 0.08 * size[2]))
    waves = [np.sin((1 + c / 9) * x) * np.cos((0.8 + c / 9) * y) + 0.5 * np.sin((x + y) / 3) for c in range(channels)]
    return np.round(127.5 + 80 * np.stack(waves)).clip(0, 255).astype(np.uint8)


def _geometries(processor: Any, linear: Preprocess) -> Iterator[Preprocess]:
    """Ways to come to the input's size that the processor's numbers suggest."""
    _, height, _ = linear.input_size
    sides = {height}
    for numbers in (getattr(processor, "size", None), getattr(processor, "crop_size", None)):
        sides |= {int(n) for n in dict(numbers or {}).values() if isinstance(n, int) and 0 < n <= MAX_SIDE}
    for side in (getattr(processor, "resize_short", None), getattr(processor, "resize_shortest_edge", None)):
        sides |= {side} if isinstance(side, int) and 0 < side <= MAX_SIDE else set()
    share = getattr(processor, "crop_pct", None)
    shares = [256 / 224, *([1 / share] if isinstance(share, float) and 0.1 < share <= 1 else [])]
    sides |= {int(side * factor) for side in tuple(sides) for factor in shares}
    own = INTERPOLATIONS.get(int(getattr(processor, "resample", None) or 0))
    for side, mode, interpolation in product(sorted(sides), ("squash", "center"), [own] if own else ["bicubic"]):
        if side >= height:
            yield replace(linear, crop_pct=_share(height, side), crop_mode=mode, interpolation=interpolation)


def _share(height: int, side: int) -> float:
    """The share that a crop of `height` is of `side`, such that `floor(height / share)` is `side` again."""
    share = height / side
    while math.floor(height / share) < side:
        share = math.nextafter(share, 0)
    return share


def _gap(pattern: np.ndarray[Any, Any], wanted: Tensor, tried: Preprocess) -> float:
    """Mean difference of a pixel, in [0, 1], between the processor's image and memaudit's own."""
    levels = wanted * torch.tensor(tried.std)[:, None, None] + torch.tensor(tried.mean)[:, None, None]
    layers = [Image.fromarray(layer) for layer in pattern]  # one by one: any number of channels
    own = np.stack([np.asarray(at_size(layer, tried), np.float32) for layer in layers]) / 255
    both = torch.from_numpy(own)
    return min(float((levels - both).abs().mean()), float((levels - both.flip(0)).abs().mean()))


def check_options(options: ModelOptions) -> None:
    """Refuse what only names timm's and torchvision's architectures.

    Raises:
        UsageError: `--arch` or `--model-kwargs` were given.
    """
    if options.arch is not None or options.model_kwargs:
        raise UsageError(
            "--arch and --model-kwargs are for architectures with names; config.json says this one",
            hint="leave them out",
        )
