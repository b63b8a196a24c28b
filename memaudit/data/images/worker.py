"""The process that decodes images: requests on stdin, pixels or the reason why there are none on stdout.

It is started by `workers.Workers`. A file that makes it crash, hang or swell ends this process and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import warnings
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd, decoded
from memaudit.data.images.geometry import at_size
from memaudit.data.images.preprocess import Preprocess
from memaudit.system import isolated

# A message: bytes of the geometry and how many files; for each the bytes of its name's suffix and of its content; then
# these. The answer: for each file what it is, what is odd about the file, and its bytes; then these.
MESSAGE, REQUEST, ANSWER = struct.Struct("<II"), struct.Struct("<IQ"), struct.Struct("<BBQ")
# What the geometry of an image depends on.
GEOMETRY = ("input_size", "crop_pct", "interpolation", "crop_mode", "mean", "exif", "bit_depth", "exact")
PIXELS, UNREADABLE, ROW_ERROR = range(3)


def main() -> None:
    """Entry point; the one argument is JSON: `memory` (bytes) and `seconds` that an image may take."""
    request = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up in the answers
    warnings.simplefilter("ignore")
    isolated.limit(request["memory"], output=0)
    while head := requests.read(MESSAGE.size):
        length, count = MESSAGE.unpack(head)
        preprocess = preprocessing(requests.read(length))
        sizes = list(REQUEST.iter_unpack(requests.read(count * REQUEST.size)))
        files = [(requests.read(suffix).decode(), requests.read(size)) for suffix, size in sizes]
        _send(answers, [_timed(suffix, content, preprocess, request["seconds"]) for suffix, content in files])


def geometry(preprocess: Preprocess) -> bytes:
    """What images depend on, as `preprocessing` reads it."""
    return json.dumps({name: getattr(preprocess, name) for name in GEOMETRY}).encode()


@cache
def preprocessing(described: bytes) -> Preprocess:
    """The geometry that a message names."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(described).items()}
    return Preprocess(**fields)


def as_array(image: Image.Image) -> np.ndarray:
    """`image` as `(C, H, W)`, of its own type."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def prepared(content: bytes, suffix: str, preprocess: Preprocess) -> tuple[np.ndarray, Odd]:
    """The image in `content` at the network's size, as `arrayed`, and what is odd about the file."""
    image, odd = decoded(content, suffix, preprocess)
    odd |= Odd(0) if image.size == preprocess.input_size[:0:-1] else Odd.RESIZED
    return arrayed(image, preprocess), odd


def arrayed(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """`image` at the network's size: uint8 `(C, H, W)`, or float32 in [0, 1] where a bit depth is stated."""
    array = as_array(at_size(image, preprocess))
    if preprocess.bit_depth is not None:
        array = array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.clip(0, 1)
        array = np.broadcast_to(array, preprocess.input_size)
    return array


def _timed(suffix: str, content: bytes, preprocess: Preprocess, seconds: float) -> tuple[int, int, bytes]:
    isolated.limit_time(seconds)
    return _answer(suffix, content, preprocess)


def _answer(suffix: str, content: bytes, preprocess: Preprocess) -> tuple[int, int, bytes]:
    try:
        pixels, odd = prepared(content, suffix, preprocess)
    except Unreadable as reason:
        return UNREADABLE, 0, str(reason).encode()
    except RowError as reason:
        return ROW_ERROR, 0, str(reason).encode()
    return PIXELS, int(odd), pixels.tobytes()


def _send(answers: BinaryIO, said: list[tuple[int, int, bytes]]) -> None:
    answers.write(b"".join(ANSWER.pack(kind, odd, len(body)) for kind, odd, body in said))
    answers.write(b"".join(body for _, _, body in said))
    answers.flush()
