"""Work as bytes for another network: its own stays here, and what is large or shared travels by itself."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
from torch import Tensor

from memaudit.engine.evaluator import Evaluator

# Tensors of so many bytes lie once in each node's memory, however many pieces and workers read them.
SHARED = 1 << 20


def large(thing: object) -> bool:
    """Whether `thing` is a tensor that is better sent once."""
    return isinstance(thing, Tensor) and thing.device.type == "cpu" and thing.nbytes >= SHARED


def packed(work: object, evaluator: Evaluator, apart: Callable[[object], bool] = large) -> tuple[bytes, dict[str, Any]]:
    """`work` as bytes, and by name what of it is `apart`; for the evaluator the other side puts its own."""
    left: dict[str, Any] = {}

    class Packer(cloudpickle.Pickler):  # type: ignore[misc] # passes hold functions of functions
        def persistent_id(self, thing: object) -> str | None:
            for name, known in _known(evaluator).items():
                if thing is known:
                    return name
            if apart(thing):
                left[str(id(thing))] = thing
                return str(id(thing))
            return None

    file = io.BytesIO()
    Packer(file).dump(work)
    return file.getvalue(), left


def unpacked(content: bytes, evaluator: Evaluator, apart: Callable[[str], Any]) -> Any:
    """The work that was `packed`, about this evaluator.

    Args:
        apart: what was left out, by its name; asked once for each; nobody may write to it.
    """
    found = _known(evaluator)

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, name: str) -> object:
            if name not in found:
                found[name] = apart(name)
            return found[name]

    return Unpacker(io.BytesIO(content)).load()


def _known(evaluator: Evaluator) -> dict[str, Any]:
    """What each side has of its own."""
    return {"evaluator": evaluator, "adapter": evaluator.adapter, "module": evaluator.adapter.module}
