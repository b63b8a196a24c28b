"""What a folder of `save_pretrained` says: which class was saved, with which settings. Data, checked before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from memaudit.checkpoints.source import opened
from memaudit.errors import ModelRejected
from memaudit.text import clean

CONFIG = "config.json"
MAX_JSON = 64 << 20  # bytes; a tokenizer.json of a large vocabulary has about 20 MB
# Settings about where and how to load or to run, none of them about what the network computes.
DROPPED = ("_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "dtype",
           "torch_dtype", "transformers_weights", "fusion_config", "kernel_config", "use_pretrained_backbone",
           "device_map", "low_cpu_mem_usage", "_experts_implementation")  # fmt: skip
# Classifiers that take something else than an image of a fixed number of channels.
NO_IMAGES = {
    "imagegpt": "it reads palette numbers, not images",
    "shieldgemma2": "it answers prompts about images",
    "siglip2": "it reads lists of patches of images of any shape",
    "timm_wrapper": "it is a timm model: leave --adapter out",
}

Task = Literal["image", "text"]


@dataclass(frozen=True)
class Saved:
    """What was saved: settings, and the class they are for."""

    folder: Path
    config: PretrainedConfig
    network: type[PreTrainedModel]
    task: Task


def read_saved(folder: Path) -> Saved:
    """The classifier that the `config.json` in `folder` describes.

    Raises:
        ModelRejected: no config, code of its own, quantised weights, or no classifier that this version has.
    """
    raw = read_json(folder / CONFIG)
    if raw is None:
        raise ModelRejected(
            f"{clean(folder.name)} has no {CONFIG}", hint="name the folder that save_pretrained or Trainer wrote"
        )
    _refuse(raw, folder)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelRejected(
            f"transformers {transformers.__version__} has no model_type {clean(kind)!r}",
            hint="install the version that saved it (transformers_version in config.json)",
        )
    task, name = _class_of(kind, raw.get("architectures"))
    try:
        config = CONFIG_MAPPING[kind].from_dict(_settings(raw))
        network = getattr(transformers, name)
    except Exception as error:
        raise ModelRejected(
            f"transformers {transformers.__version__} does not take this {CONFIG}: "
            f"{type(error).__name__}: {clean(error)}",
            hint="install the version that saved it (transformers_version in config.json)",
        ) from error
    return Saved(folder, config, network, task)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or `None` where there is no such file.

    Raises:
        ModelRejected: it is no JSON object, or unreasonably large.
    """
    if not path.exists():
        return None
    with opened(path) as source:
        try:
            if source.size > MAX_JSON:
                raise ValueError(f"{source.size:,} bytes")
            found = json.loads(source.read(0, source.size).decode("utf-8-sig"))
            if not isinstance(found, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise ModelRejected(f"{source.name} is not sound JSON: {clean(error)}", hint="fetch it again") from error
    return found


def _refuse(raw: Mapping[str, Any], folder: Path) -> None:
    """Raise where the weights alone do not say what is computed."""
    where = f"{clean(folder.name)}/{CONFIG}"
    if raw.get("auto_map"):
        raise ModelRejected(
            f"{where} names code of its own (auto_map), which is never run",
            hint="build the network in a file of yours: --adapter ./my_model.py:build",
        )
    if raw.get("quantization_config"):
        raise ModelRejected(f"{where} describes quantised weights", hint="audit the unquantised model it was made from")
    if raw.get("problem_type") == "regression":
        raise ModelRejected(f"{where} is a regression, which has no labels", hint="memaudit audits classifiers")


def _class_of(kind: str, architectures: object) -> tuple[Task, str]:
    """The task, and the name of the class: the saved one, where it is a classifier of this model type."""
    tables: dict[Task, Mapping[str, str | tuple[str, ...]]] = {
        "image": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "text": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    listed = {task: table.get(kind, ()) for task, table in tables.items()}
    known: dict[str, Task] = {}
    for task, names in listed.items():
        known |= dict.fromkeys([names] if isinstance(names, str) else names, task)
    saved = [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    for name in saved or known:
        if name in known:
            if known[name] == "image" and kind in NO_IMAGES:
                raise ModelRejected(
                    f"{clean(name)} cannot be audited: {NO_IMAGES[kind]}", hint="see memaudit adapters list"
                )
            return known[name], name
    what = clean(saved[0]) if saved else f"a {clean(kind)} model"
    takes = f"; of {clean(kind)} it takes {', '.join(known)}" if known else ""
    raise ModelRejected(
        f"{what} is no classifier of images or of text that this adapter takes{takes}",
        hint="save the classifier that was trained, with its head, by save_pretrained",
    )


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that shape the network, those of parts of it too."""
    return {
        name: _settings(value) if isinstance(value, dict) else value
        for name, value in raw.items()
        if name not in DROPPED
    }
