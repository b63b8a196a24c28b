"""What a batch returned, as JSON that is read back bit for bit."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memaudit.checkpoints.tensors import DTYPES, NAMES


def encode(value: object) -> Any:
    """Tensors, and plain containers of them, as JSON that `decode` reads back bit for bit; tuples become lists."""
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        content = dense.flatten().view(torch.uint8).numpy().tobytes() if dense.numel() else b""
        return {"tensor": [NAMES[dense.dtype], list(dense.shape), base64.b64encode(content).decode()]}
    if isinstance(value, Mapping):
        return {"table": {str(k): encode(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a batch may not return a {type(value).__name__}")


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "table" in value:
        return {k: decode(v) for k, v in value["table"].items()}
    dtype, shape, text = value["tensor"]
    content = bytearray(base64.b64decode(text))
    flat = torch.frombuffer(content, dtype=DTYPES[dtype]) if content else torch.empty(0, dtype=DTYPES[dtype])
    return flat.reshape(shape)
