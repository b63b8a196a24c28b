"""A file of arrays (`.npz`, `.safetensors`, `.parquet`): `x`, `y`, optionally `id`, `true_label` and `mask`.

Images are uint8 or uint16 NHWC, or floats NCHW in [0, 1]; anything else is what the network takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memaudit.data.classes import Classes
from memaudit.data.decode import Progress
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.members import read_members, with_mask
from memaudit.data.paths import display
from memaudit.data.tensors import Labels, TensorListing, list_tensors
from memaudit.errors import DataRejected


def list_arrays(path: Path, classes: Classes, paired: bool = False) -> TensorListing:
    """Every row of the file of arrays `path`.

    Args:
        paired: an example has several labels, and `y` is `(N, L)`.

    Raises:
        DataRejected: the file is not what it should be, or labels or ids do not fit.
    """
    arrays = read_members(path)
    name = display(path)
    missing = next((k for k in ("x", "y") if k not in arrays), None)
    if missing:
        raise DataRejected(f"{name}: no array '{missing}'", hint="np.savez(path, x=images, y=labels)")
    ids = arrays.get("id")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iuU"):
        raise DataRejected(f"{name}: id is {ids.dtype} of shape {ids.shape}; give one integer or string per row")
    names = None if ids is None else ids.tolist()
    return _list(with_mask(arrays, name), arrays["y"], classes, name, names, arrays.get("true_label"), paired)


def from_arrays(
    x: np.ndarray,
    y: Labels,
    *,
    preprocess: Preprocess,
    num_classes: int | None,
    class_names: Sequence[str] = (),
    ids: Sequence[object] | None = None,
    true_labels: Labels | None = None,
    source: str = "arrays",
    limit: int | None = None,
    progress: Progress | None = None,
) -> ExampleSet:
    """As an `.npz` with these arrays: `x` uint8 `(N, H, W, C)` or float `(N, C, H, W)` in [0, 1].

    Unlike `from_tensors` nothing is inferred from shapes, so no layout is ambiguous.

    Raises:
        DataRejected: values, shapes or labels are not what the network takes.
    """
    classes = Classes.of(class_names, num_classes)
    return _list(x, y, classes, source, ids, true_labels).load(preprocess, limit, progress)


def _list(
    x: np.ndarray,
    y: Labels,
    classes: Classes,
    source: str,
    ids: Sequence[object] | None,
    true_labels: Labels | None,
    paired: bool = False,
) -> TensorListing:
    layout = "NHWC" if x.dtype in (np.uint8, np.uint16) else "NCHW"
    return list_tensors(
        x, y, classes, source, ids=ids, true_labels=true_labels, layout=layout, unit_range=True, paired=paired
    )
