"""Work as bytes for another process: the network stays here, large tensors travel by themselves."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memaudit.engine.evaluator import Evaluator

# Tensors of so many bytes lie once in each node's memory, however many pieces and workers read them.
SHARED = 1 << 20


def packed(work: object, evaluator: Evaluator) -> tuple[bytes, dict[str, Tensor]]:
    """`work` as bytes, and the large tensors they name; for the evaluator the other side puts its own."""
    from ray import cloudpickle  # passes hold functions of functions, which plain pickle does not take

    tensors: dict[str, Tensor] = {}

    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, thing: object) -> str | None:
            if thing is evaluator or thing is evaluator.adapter:
                return "evaluator" if thing is evaluator else "adapter"
            if isinstance(thing, Tensor) and thing.device.type == "cpu" and thing.nbytes >= SHARED:
                tensors[str(id(thing))] = thing
                return str(id(thing))
            return None

    file = io.BytesIO()
    Packer(file).dump(work)
    return file.getvalue(), tensors


def unpacked(content: bytes, evaluator: Evaluator, shared: Callable[[str], Any]) -> Any:
    """The work that was `packed`, about this evaluator.

    Args:
        shared: from a tensor's name to its values; nobody may write to them.
    """

    found: dict[str, Tensor] = {}

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, name: str) -> object:
            if name in ("evaluator", "adapter"):
                return evaluator if name == "evaluator" else evaluator.adapter
            if name not in found:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that they are read-only
                    found[name] = torch.from_numpy(shared(name))
            return found[name]

    return Unpacker(io.BytesIO(content)).load()
