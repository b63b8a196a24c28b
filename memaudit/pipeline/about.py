"""What each kind of report says of its making: settings, machine, checkpoint, and what differs from run to run."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import torch

from memaudit.adapters.base import Adapter
from memaudit.engine.evaluator import Evaluator
from memaudit.findings import ConfigValue, ModelInfo
from memaudit.settings import Provenance, Settings


def config_of(settings: Settings) -> dict[str, ConfigValue]:
    """The settings of a library call, which has no flags."""
    default = Settings()
    names = ("max_units", "unit", "layers", "ablation", "profile", "dtype", "seed", "limit", "group_depth")
    values: dict[str, Any] = {name: getattr(settings, name) for name in names}
    values["audits"] = None if settings.audits is None else list(settings.audits)
    return {
        name: ConfigValue(
            value=value, origin="default" if getattr(settings, name) == getattr(default, name) else "argument"
        )
        for name, value in values.items()
    }


def environment(device: torch.device) -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "device": _device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
    }


def model_info(adapter: Adapter, provenance: Provenance, classes: int) -> ModelInfo:
    """The audited checkpoint, as reports show it."""
    first = next(adapter.module.parameters(), None)
    return ModelInfo(
        path=provenance.model_path,
        sha256=provenance.model_sha256,
        md5=provenance.model_md5,
        architecture=adapter.architecture,
        adapter=adapter.name or "module",
        num_classes=classes,
        parameters=adapter.parameters,
        weights="ema" if provenance.weights == "ema" else "raw",
        stripped_prefix=provenance.stripped_prefix,
        dtype=str(first.dtype).removeprefix("torch.") if first is not None else "float32",
        candidates=list(adapter.alternatives) if len(adapter.alternatives) > 1 else [],
    )


def volatile(evaluator: Evaluator, started: float) -> dict[str, Any]:
    """What may differ between two runs of the same command; `started` is in seconds since 1970."""
    return {
        **times(started),
        "batch_size": evaluator.batch_size,
        "threads": evaluator.threads,
        "workers": evaluator.engine.workers,
        "resumed_batches": evaluator.journal.recorded if evaluator.journal else 0,
    }


def times(started: float) -> dict[str, Any]:
    """When it started, in UTC, and the seconds until now."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 2),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
