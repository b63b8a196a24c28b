"""The throw-away process that opens a pickle: checkpoint on stdin, plain tensors as safetensors on stdout.

It is started by `sandbox.open_pickle` and trusts nothing it reads. On a refusal it writes the error as JSON instead
and exits `REFUSED`; any other exit is a crash, which is what it is there to contain.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import sys
import warnings
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from memaudit.checkpoints import opcodes
from memaudit.checkpoints.sandbox import DISK_FULL, REFUSED
from memaudit.checkpoints.sniff import LEGACY_MAGIC, SAVE_AGAIN
from memaudit.checkpoints.tensors import NAMES, write_tensors
from memaudit.checkpoints.unwrap import unwrap
from memaudit.errors import MemauditError, ModelRejected
from memaudit.system import isolated
from memaudit.text import clean

MEMORY_SLACK = 512 << 20  # bytes beyond the file: allocator, pickle objects


class Inert:
    """Stands where a pickle names a numpy scalar, an array or a path: takes any arguments, keeps nothing."""

    def __new__(cls, *_: object) -> Inert:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def main() -> None:
    """Entry point; the one argument is JSON: `name`, `weights`, `size` (bytes), `cpu` (seconds).

    A trusted file has two more: `trusted`, and `imports`, a folder whose Python files it names, or null.
    """
    request = json.loads(sys.argv[1])
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up in the tensors
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    size = request["size"]
    isolated.limit(3 * size + MEMORY_SLACK, output=2 * size + MEMORY_SLACK, seconds=request["cpu"])
    try:
        _run(request, stream)
    except MemauditError as error:
        stream.write(json.dumps(_as_plain(error)).encode())
        stream.flush()
        sys.exit(REFUSED)
    except OSError as error:
        sys.exit(DISK_FULL if error.errno == errno.ENOSPC else 1)


def _run(request: dict[str, Any], stream: BinaryIO) -> None:
    """Load, find the weights, check each tensor, hand them over.

    Args:
        request: see `main`.
        stream: where the safetensors go; nothing is written to it before every check has passed.
    """
    name = request["name"]
    if request.get("trusted") and request.get("imports"):
        sys.path.append(request["imports"])  # last: it hides nothing that Python itself has
    content = _unrestricted(name) if request.get("trusted") else _weights_only(name)
    found = unwrap(content, request["weights"], name)
    tensors = {key: plain_tensor(key, value, name, request["size"]) for key, value in found.tensors.items()}
    if sum(t.numel() * t.itemsize for t in tensors.values()) > 2 * request["size"] + MEMORY_SLACK:
        raise _too_large(name)
    write_tensors(tensors, {"about": json.dumps(found.about), "weights": found.weights}, stream)
    stream.flush()


def _weights_only(name: str) -> object:
    """What torch's own restricted loader makes of stdin, with placeholders for bookkeeping beside the weights."""
    try:
        # torch looks placeholders up by the name the pickle uses.
        with torch.serialization.safe_globals([*((Inert, path) for path in opcodes.INERT), argparse.Namespace]):
            return torch.load(sys.stdin.buffer, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise _too_large(name) from error
    except Exception as error:  # torch's own text advises to load without the check, which nobody should read here
        if "memory" in str(error).lower():
            raise _too_large(name) from error
        raise ModelRejected(
            f"{name}: torch's weights-only loader refuses it ({type(error).__name__})", hint=SAVE_AGAIN
        ) from error


def _unrestricted(name: str) -> object:
    """What any pickle on stdin makes; networks in it become their tables of tensors."""
    stream = sys.stdin.buffer
    head = stream.read(len(LEGACY_MAGIC))
    stream.seek(0)
    try:
        if head.startswith((b"PK", LEGACY_MAGIC)):
            content = torch.load(stream, map_location="cpu", weights_only=False)
        else:
            content = pickle.load(stream)  # noqa: S301 - the user named it, with its digest
        if isinstance(content, nn.Module):
            return OrderedDict(content.state_dict())
        if isinstance(content, dict):
            return {k: OrderedDict(v.state_dict()) if isinstance(v, nn.Module) else v for k, v in content.items()}
    except ModuleNotFoundError as error:
        raise ModelRejected(
            f"{name} needs the Python package {clean(error.name)!r}",
            hint="install it beside memaudit, or name the folder of its files with --import-from",
        ) from error
    except MemoryError as error:
        raise _too_large(name) from error
    except Exception as error:
        raise ModelRejected(
            f"{name} cannot be opened: {type(error).__name__}: {clean(error)}", hint="fetch or save it again"
        ) from error
    return content


def plain_tensor(key: str, value: Tensor, name: str, size: int) -> Tensor:
    """`value`, of its shape, as a dense tensor whose every element is in the file.

    Methods are the class's own, never the instance's.

    Raises:
        ModelRejected: sparse, quantised, an exotic type, or a shape larger than the stored data.
    """
    if type(value) not in (Tensor, nn.Parameter):
        raise ModelRejected(f"{name}: {clean(key)!r} is a {clean(type(value).__name__)}, no tensor", hint=SAVE_AGAIN)
    dense = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    if not dense or value.dtype not in NAMES:
        kind = f"{value.device.type} {value.layout} {value.dtype}".replace("torch.", "")
        raise ModelRejected(
            f"{name}: {clean(key)!r} is a {kind} tensor",
            hint="audit the checkpoint with plain float tensors that it was made from",
        )
    stored = Tensor.untyped_storage(value).nbytes()
    needed = Tensor.numel(value) * value.dtype.itemsize
    if needed > stored or stored > size:
        raise ModelRejected(
            f"{name}: {clean(key)!r} claims the shape {clean(list(value.shape))}, more than the file stores",
            hint="do not trust this file",
        )
    return Tensor.contiguous(Tensor.detach(value).resolve_conj().resolve_neg())


def _too_large(name: str) -> ModelRejected:
    """The error for what would have been a memory bomb without the limits."""
    return ModelRejected(
        f"{name}: reading it needs far more memory than its size justifies", hint="do not trust this file"
    )


def _as_plain(error: MemauditError) -> dict[str, object]:
    """An error as JSON-able values; `sandbox._as_error` is the way back."""
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "details": list(error.details),
    }


if __name__ == "__main__":
    main()
