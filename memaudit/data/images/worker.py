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
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import decode
from memaudit.data.images.geometry import fit
from memaudit.data.images.preprocess import Preprocess
from memaudit.system import isolated

# Bytes of the file name's suffix and of the content; what the answer is, and its bytes.
REQUEST, ANSWER = struct.Struct("<IQ"), struct.Struct("<BQ")
PIXELS, UNREADABLE, ROW_ERROR = range(3)


def main() -> None:
    """Entry point; the one argument is JSON: `preprocess` (what geometry depends on), `memory` (bytes), `seconds`."""
    request = json.loads(sys.argv[1])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["preprocess"].items()}
    preprocess = Preprocess(**fields)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up in the answers
    warnings.simplefilter("ignore")
    isolated.limit(request["memory"], output=0)
    while head := requests.read(REQUEST.size):
        suffix, size = REQUEST.unpack(head)
        isolated.limit_time(request["seconds"])
        kind, body = _answer(requests.read(suffix).decode(), requests.read(size), preprocess)
        _send(answers, kind, body)


def as_array(image: Image.Image) -> np.ndarray:
    """`image` as uint8 `(C, H, W)`."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _answer(suffix: str, content: bytes, preprocess: Preprocess) -> tuple[int, bytes]:
    try:
        image = fit(decode(content, suffix, preprocess.input_size[0]), preprocess)
    except Unreadable as reason:
        return UNREADABLE, str(reason).encode()
    except RowError as reason:
        return ROW_ERROR, str(reason).encode()
    return PIXELS, as_array(image).tobytes()


def _send(answers: BinaryIO, kind: int, body: bytes) -> None:
    answers.write(ANSWER.pack(kind, len(body)))
    answers.write(body)
    answers.flush()
