"""Safetensors to tensors, and back.

The safetensors library would open the path a second time (and by default map it, so that a file cut during the run
kills the process by SIGBUS). After the strict header pass there is nothing left to parse, so the data is read once,
through the descriptor that was checked; the bytes that are hashed are the bytes the tensors are made of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from memaudit.checkpoints.digests import Chunks
from memaudit.checkpoints.header import Entry, read_header
from memaudit.checkpoints.source import CHUNK, Source
from memaudit.errors import EnvironmentFault

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensors(source: Source) -> tuple[dict[str, Tensor], dict[str, str], Chunks]:
    """`(tensors, metadata, chunks)` of a safetensors file; `chunks` gives its bytes again, from memory.

    Raises:
        ModelRejected: the header is unsound, or the file was cut while it was read.
        EnvironmentFault: it does not fit in memory.
    """
    header = read_header(source)
    head = source.read(0, header.start)
    try:
        data = torch.empty(source.size - header.start, dtype=torch.uint8)
    except RuntimeError as error:
        raise EnvironmentFault(
            f"{source.name} needs {source.size:,} bytes of memory", hint="use a machine with more memory"
        ) from error
    view = memoryview(data.numpy().data)
    position = 0
    while position < len(view):
        count = os.preadv(source.descriptor, [view[position : position + CHUNK]], header.start + position)
        if not count:
            raise source.changed()
        position += count
    tensors = {e.name: _tensor(data, e) for e in header.entries}
    return tensors, dict(header.metadata), lambda: (head, view)


def _tensor(data: Tensor, entry: Entry) -> Tensor:
    dtype = DTYPES[entry.dtype]
    part = data[entry.begin : entry.end]
    if entry.begin % dtype.itemsize:
        part = part.clone()  # a view as a wider type needs an aligned start
    return part.view(dtype).view(entry.shape)


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], stream: BinaryIO) -> None:
    """Write a safetensors file tensor by tensor, so that no second copy of the model is ever in memory.

    Args:
        tensors: dense, on the CPU.
        metadata: strings, kept in the header.
        stream: opened for writing bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        if tensor.numel():
            stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
