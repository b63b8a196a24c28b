"""From what a file says about itself to `Facts`: every value checked for type and size, the rest dropped silently.

A dropped value is no error: the file is then merely one that says less. Nothing here is imported, fetched or run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from memaudit.checkpoints.processor import from_processor
from memaudit.checkpoints.source import Source
from memaudit.checkpoints.types import Facts
from memaudit.errors import ModelRejected
from memaudit.text import clean

MAX_CONFIG = 8 << 20  # bytes; the config.json of the 21,000-class models is about 1 MB
MAX_LIST = 16
# Where the header of a safetensors file holds what a `config.json` would.
METADATA = "config"
MAX_CLASSES = 1_000_000
MAX_ARGUMENT = 1 << 14  # the widest layer of any timm model has half of this; more would only slow the building
# Arguments of timm.create_model that name files, weights or what to return: never taken from a file. The image size
# follows from the tensors or the input size.
REFUSED_KWARGS = re.compile(
    r"pretrained|checkpoint|cache|scriptable|exportable|features|out_indices|file|path|url|img_size|num_classes"
)
_ARCHITECTURE = re.compile(r"(torchvision:)?[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
_CROP_MODES = ("center", "squash", "border")


def from_training(about: Mapping[str, Any], where: str = "the checkpoint") -> Facts:
    """Facts of a training checkpoint (timm's `arch`, `args`, `epoch`).

    Args:
        about: `arch`, `epoch` and the kept training `args`, as the child wrote them.
        where: who says so.
    """
    args = about.get("args")
    args = args if isinstance(args, dict) else {}
    architecture = _architecture(about.get("arch")) or _architecture(args.get("model"))
    kwargs = _kwargs(args.get("model_kwargs"))
    kwargs |= _kwargs({"in_chans": args.get("in_chans"), "global_pool": args.get("gp")})
    size = args.get("input_size") or args.get("img_size")
    return Facts(
        architecture=architecture,
        origin=f"arch in {where}" if architecture else "",
        model_kwargs=kwargs,
        num_classes=_count(args.get("num_classes")),
        preprocess=_preprocess({**args, "input_size": size}),
        class_names=_names(about.get("class_names")),
        epoch=_epoch(about.get("epoch")),
    )


def from_config(source: Source) -> Facts:
    """Facts of a `config.json` in the Hugging Face style.

    Raises:
        ModelRejected: it is no JSON object, or unreasonably large.
    """
    return _configured(_object(source), source.name)


def from_metadata(texts: Mapping[str, str]) -> Facts:
    """Facts in the header of a safetensors file that `as_metadata` wrote; nothing in any other."""
    try:
        raw = json.loads(texts.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        return Facts()
    return _configured(raw, "the file") if isinstance(raw, dict) else Facts()


def as_metadata(facts: Facts) -> dict[str, str]:
    """What a written safetensors file says of itself, as a `config.json` would; `from_metadata` reads it."""
    said = {
        "architecture": facts.architecture,
        "model_args": facts.model_kwargs,
        "num_classes": facts.num_classes,
        "pretrained_cfg": facts.preprocess,
        "label_names": facts.class_names,
    }
    said = {name: value for name, value in said.items() if value}
    return {METADATA: json.dumps(said)} if said else {}


def _configured(raw: Mapping[str, Any], where: str) -> Facts:
    pretrained = raw.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    names = raw.get("label_names") or pretrained.get("label_names") or _by_number(raw.get("id2label"))
    model_type = raw.get("model_type")
    architecture = _architecture(raw.get("architecture"))
    return Facts(
        architecture=architecture,
        origin=f"architecture in {where}" if architecture else "",
        model_kwargs=_kwargs(raw.get("model_args")),
        num_classes=_count(raw.get("num_classes")) or _count(pretrained.get("num_classes")),
        preprocess={**_preprocess(_as_timm(raw)), **_preprocess(pretrained)},
        class_names=_names(names),
        model_type=clean(model_type) if isinstance(model_type, str) else None,
    )


def from_preprocessor(source: Source) -> dict[str, object]:
    """`Facts.preprocess`, as a `preprocessor_config.json` says it.

    Raises:
        ModelRejected: it is no JSON object, or unreasonably large.
    """
    return _preprocess(from_processor(_object(source)))


def _object(source: Source) -> dict[str, Any]:
    """The object in a JSON file."""
    if source.size > MAX_CONFIG:
        raise ModelRejected(f"{source.name} has {source.size:,} bytes", hint="remove it, or fetch it again")
    try:
        raw = json.loads(source.read(0, source.size).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{source.name} is not valid JSON: {clean(error)}", hint="fetch it again") from error
    if not isinstance(raw, dict):
        raise ModelRejected(f"{source.name} holds no object", hint="fetch it again")
    return raw


def _as_timm(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of the user's own says at its top, by timm's names."""
    names = {"mean": "image_mean", "std": "image_std", "input_size": "image_size"}
    return {**raw, **{own: raw.get(own, raw.get(other)) for own, other in names.items()}}


def _architecture(raw: object) -> str | None:
    """A name as timm or torchvision has; `hf-hub:` and paths, which would fetch or read, do not match."""
    return raw if isinstance(raw, str) and _ARCHITECTURE.fullmatch(raw) else None


def _count(raw: object) -> int | None:
    """A number of classes; a bool, which is an int to Python, is none."""
    return raw if type(raw) is int and 0 < raw <= MAX_CLASSES else None


def _epoch(raw: object) -> int | None:
    return raw if type(raw) is int and 0 <= raw < 1 << 31 else None


def _names(raw: object) -> tuple[str, ...]:
    """Class names by label; none at all rather than some."""
    if isinstance(raw, list) and len(raw) <= MAX_CLASSES and all(isinstance(n, str) for n in raw):
        return tuple(clean(n) for n in raw)
    return ()


def _by_number(raw: object) -> list[object] | None:
    """The names in a table of label number to name, as transformers writes it; its own placeholders are no names."""
    if not isinstance(raw, dict) or not 0 < len(raw) <= MAX_CLASSES:
        return None
    names = [raw.get(str(number)) for number in range(len(raw))]
    return None if names == [f"LABEL_{number}" for number in range(len(names))] else names


def _kwargs(raw: object) -> dict[str, object]:
    """The arguments with an acceptable name and a plain value."""
    if not isinstance(raw, dict):
        return {}
    return {
        name: value
        for name, value in raw.items()
        if isinstance(name, str) and name.isidentifier() and not REFUSED_KWARGS.search(name) and is_plain(value)
    }


def is_plain(value: object) -> bool:
    """Whether `value` is a scalar a model argument may be, or a short list of them."""
    if isinstance(value, list | tuple):
        return len(value) <= MAX_LIST and all(not isinstance(v, list | tuple) and is_plain(v) for v in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= 100 and value.isprintable()
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) <= MAX_ARGUMENT)


def _preprocess(raw: Mapping[str, Any]) -> dict[str, object]:
    """Any of mean, std, input_size, crop_pct, interpolation, crop_mode, channel_order whose value can be one."""
    kept: dict[str, object] = {}
    for name in ("mean", "std"):
        values: Any = raw.get(name)
        fits = isinstance(values, list | tuple) and 1 <= len(values) <= 4 and all(_finite(v) for v in values)
        if fits and (name == "mean" or min(values) > 0):
            kept[name] = tuple(float(v) for v in values)
    for name in ("input_size", "test_input_size"):
        size = raw.get(name)
        if type(size) is int:
            size = [3, size, size]
        if isinstance(size, list | tuple) and len(size) == 3 and all(type(n) is int and 0 < n <= 4096 for n in size):
            kept[name] = tuple(size)
    crop: Any = raw.get("crop_pct")
    if _finite(crop) and 0 < crop <= 2:
        kept["crop_pct"] = float(crop)
    if raw.get("interpolation") in _INTERPOLATIONS:
        kept["interpolation"] = raw["interpolation"]
    for name, known in (("crop_mode", _CROP_MODES), ("channel_order", ("rgb", "bgr"))):
        if raw.get(name) in known:
            kept[name] = raw[name]
    return kept


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
