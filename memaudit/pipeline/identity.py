"""What makes two audits the same run: only then may one go on with what the other measured."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.device import resolve_device
from memaudit.network.states import State
from memaudit.settings import Provenance, Settings
from memaudit.version import __version__

# They decide when an audit stops, and what its numbers are judged by, but no number.
NOT_NUMBERS = frozenset({"policy", "time_limit", "device", "threads"})


def run_of(
    adapter: Adapter,
    sets: Mapping[str, ExampleSet | None],
    states: Sequence[State],
    settings: Settings,
    provenance: Provenance,
) -> dict[str, str]:
    """Everything that shapes an audit's numbers, by the name a person would look for; hashes where it is large.

    Args:
        sets: flagged, reference and test examples.
    """
    device = resolve_device(settings.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    run = {
        "model": provenance.model_sha256,
        "weights": provenance.weights,
        "architecture": f"{adapter.name} {adapter.architecture}",
        "adapter code": _adapter_code(adapter),
        "preprocessing": str(adapter.preprocess),
        "device": machine,
        "checkpoints": _hash(*(f"{s.label} {s.sha256} {s.final}" for s in states)),
        "memaudit": f"{__version__} {_own_code()[:12]}",
        "torch": torch.__version__,
        "timm": version("timm"),
    }
    for name, examples in sets.items():
        if examples is not None:
            seen = (examples.sha256, *examples.unreadable, *examples.duplicates, str(examples.omitted))
            run[f"{name} examples"] = _hash(*seen)
    for field in fields(settings):
        if field.name not in NOT_NUMBERS:
            run[field.name.replace("_", " ")] = str(getattr(settings, field.name))
    return run


def _adapter_code(adapter: Adapter) -> str:
    code = getattr(adapter, "code", None)
    if code is not None:
        return str(code.sha256)
    try:
        return _hash(inspect.getsource(type(adapter)))
    except (OSError, TypeError):
        return ""


@cache
def _own_code() -> str:
    """Hash of the package's own source."""
    root = Path(__file__).parents[1]
    return _hash(*(f"{p.relative_to(root)} {p.read_text('utf-8')}" for p in sorted(root.rglob("*.py"))))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
