"""Arrays that are no 8-bit images: taken as they are, once shape and numbers are what the network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memaudit.data.compact import Row
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected

# A 16-bit image whose brightest value is not above this has fewer bits, and nobody knows its range.
TWELVE_BITS = 4095


def as_values(x: Tensor, preprocess: Preprocess, rows: Sequence[Row], source: str) -> Tensor:
    """Rows of a table, signals, volumes or token ids `(N, ...)`, in the network's type; nothing is scaled.

    Raises:
        DataRejected: another shape than the network's, uint8 (whose scale nobody knows), NaN, or ids that are none.
    """
    wanted = ", ".join(map(str, preprocess.input_size))
    if tuple(x.shape[1:]) != preprocess.input_size:
        raise DataRejected(
            f"{source}: x has shape {tuple(x.shape)}, the network takes (N, {wanted})",
            hint="give examples of the network's own shape, or name it: --input-size '(C,T)'",
        )
    if preprocess.tokens:
        if x.is_floating_point() or bool((x < 0).any()):
            raise DataRejected(f"{source}: token ids are whole numbers from 0", hint="save them as int64")
        return x.long().contiguous()
    if x.dtype == torch.uint8:
        raise DataRejected(
            f"{source}: uint8 x of shape {tuple(x.shape)} is no image, and nothing says its scale",
            hint="save floats as the network was trained on them: x.astype('float32') / 255, or without the division",
        )
    values = x if x.is_floating_point() else x.float()
    check_rows(values, rows, source)
    return values.contiguous()


def sixteen_bit(x: Tensor, source: str) -> Tensor:
    """uint16 images `(N, C, H, W)` as floats in [0, 1].

    Raises:
        DataRejected: the values use 12 bits or fewer: their range is another one.
    """
    values = x.int()
    highest = int(values.max())
    if highest <= TWELVE_BITS:
        raise DataRejected(
            f"{source}: uint16 x has no value above {highest}: these are fewer than 16 bits, and nothing says how many",
            hint="save floats as the network was trained on them, for example x / 4095 of 12 bits",
        )
    return values.float() / 65535


def check_rows(x: Tensor, rows: Sequence[Row], source: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataRejected: by row.
    """
    finite = torch.isfinite(x.flatten(1)).all(1)
    rejections = Rejections(source)
    for position in (~finite).nonzero().flatten().tolist():
        rejections.add(f"row {rows[position].index}", "a value is NaN or infinite")
    rejections.check(len(x), hint="fill missing values in as the training did, or leave the rows out")
