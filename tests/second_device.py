"""memaudit on a device beside the CPU: what can be said of the code's way with a GPU where none is at hand.

The device's tensors lie in the CPU's memory and its kernels are the CPU's, but PyTorch takes it for another device: an
operation on tensors of both fails as it does on CUDA, and float64 as it does on MPS. Each wait of the host for the
device is noted with the place in memaudit that asked for it; `forward` is added where the network was running.

    python -m tests.second_device COMMANDS.json NOTED.json

COMMANDS.json: a list of command lines of `memaudit`, run one after the other; they name it with `--device second`.
NOTED.json: by command its exit code, its waits, and the batches that were run. A process of its own, because PyTorch
counts devices once, before the first backward pass.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from memaudit.engine import device, loop

aten = torch.ops.aten
NAME = "second"
PACKAGE = f"{Path(loop.__file__).parents[1]}/"
# Operations of a device that take indices on the CPU.
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Operations whose result, or its shape, the host waits for.
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select}


class Module:
    """What PyTorch asks of `torch.second`."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """It draws no random numbers of its own."""

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, Module())
DEVICE = torch.device(NAME, 0)


class Second(Tensor):
    """A tensor of the device around one of the CPU."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Second:
        if value.dtype is torch.float64:
            raise TypeError(f"{NAME} has no float64")
        own = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        own.value = value
        return own

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return Second(self.value)

    @data.setter
    def data(self, other: Second) -> None:
        self.value = other.value

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.value.untyped_storage()

    def tolist(self) -> Any:
        note()
        return self.value.tolist()


class Dispatch(TorchDispatchMode):
    """Also what makes tensors out of none."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


waits: Counter[str] = Counter()


def note() -> None:
    """The host waits, on behalf of the innermost function of memaudit."""
    own = [f.f_code for f, _ in traceback.walk_stack(None) if f.f_code.co_filename.startswith(PACKAGE)]
    within = any(c.co_name == "forward" and c.co_filename.endswith("adapters/base.py") for c in own)
    place = f"{Path(own[0].co_filename).name} {own[0].co_name}" if own else "elsewhere"
    waits[f"{place}, forward" if within else place] += 1


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its result is of the device if that was asked for, or else if an argument is."""
    kind = operation.overloadpacket
    tensors: list[Tensor] = []

    def inner(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return value.value if isinstance(value, Second) else value
        return type(value)(map(inner, value)) if type(value) in (tuple, list) else value

    args, kwargs, first = inner(args), {name: inner(value) for name, value in kwargs.items()}, args[:1]
    own = [t for t in tensors if isinstance(t, Second)]
    asked = kwargs.get("device")
    if kind is aten.copy_:
        here = isinstance(first[0], Second)
        moved = own and not here
    else:
        here = bool(own) if asked is None else torch.device(asked).type == NAME
        moved = own and not here
        crosses = kind in INDEXING or kind is aten._to_copy
        if own and not crosses and any(t.dim() for t in tensors if not isinstance(t, Second)):
            raise RuntimeError(f"{operation}: tensors of two devices")
    if moved or (own and kind in WAITING):
        note()
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def outer(value: Any) -> Any:
        if isinstance(value, Tensor):
            written = [t for t in own if t.value is value]
            return written[0] if written else Second(value)
        return type(value)(map(outer, value)) if type(value) in (tuple, list) else value

    with torch._C._DisableTorchDispatch():
        result = operation(*args, **kwargs)
    return outer(result) if here else result


def empty(size: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Second(torch.empty(size, dtype=dtype))


def empty_strided(size: Any, stride: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Second(torch.empty_strided(size, stride, dtype=dtype))


def copy_from(source: Any, to: Second, non_blocking: bool = False) -> Tensor:
    to.value.copy_(source.value if isinstance(source, Second) else source)
    return to


def register() -> Library:
    """Tell PyTorch of the device, and memaudit its name; the kernels last as long as what is returned."""
    library = Library("aten", "IMPL")
    for name, kernel in (("empty.memory_format", empty), ("empty_strided", empty_strided), ("_copy_from", copy_from)):
        library.impl(name, kernel, "PrivateUse1")
    known = device.resolve_device
    device.resolve_device = lambda name: DEVICE if name == NAME else known(name)
    return library


def main() -> None:
    library = register()
    from memaudit.__main__ import run  # whose modules take resolve_device by name
    from tests.quick import short_trainings

    found, measure = [], loop.Loop._measure
    for command in json.loads(Path(sys.argv[1]).read_text()):
        waits.clear()
        with (
            Dispatch(),
            short_trainings(),
            mock.patch.object(loop.Loop, "_measure", autospec=True, side_effect=measure) as batches,
        ):
            code = run(command)
        found.append({"code": int(code), "batches": batches.call_count, "waits": dict(waits)})
    Path(sys.argv[2]).write_text(json.dumps(found))
    del library


if __name__ == "__main__":
    main()
