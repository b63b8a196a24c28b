"""An `.npz` of labelled images: `x` uint8 NHWC or float NCHW in [0, 1], `y`, optionally `id` and `true_label`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memaudit.data.classes import Classes
from memaudit.data.decode import Progress
from memaudit.data.examples import ExampleSet
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.npz import read_npz
from memaudit.data.paths import display
from memaudit.data.tensors import Labels, TensorListing, list_tensors
from memaudit.errors import DataRejected

_NAMES = ("x", "y", "id", "true_label")


def list_arrays(path: Path, classes: Classes) -> TensorListing:
    """Every row of the `.npz` file `path`.

    Raises:
        DataRejected: the file is not what it should be, or labels or ids do not fit.
    """
    arrays = read_npz(path, _NAMES)
    name = display(path)
    missing = next((k for k in ("x", "y") if k not in arrays), None)
    if missing:
        raise DataRejected(f"{name}: no array '{missing}'", hint="np.savez(path, x=images, y=labels)")
    ids = arrays.get("id")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iuU"):
        raise DataRejected(f"{name}: id is {ids.dtype} of shape {ids.shape}; give one integer or string per row")
    return _list(
        arrays["x"], arrays["y"], classes, name, None if ids is None else ids.tolist(), arrays.get("true_label")
    )


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

    Unlike `from_tensors` nothing is told from shapes, so no layout is ambiguous.

    Raises:
        DataRejected: values, shapes or labels are not what the network takes.
    """
    classes = Classes.of(class_names, num_classes)
    return _list(x, y, classes, source, ids, true_labels).load(preprocess, limit, progress)


def _list(
    x: np.ndarray, y: Labels, classes: Classes, source: str, ids: Sequence[object] | None, true_labels: Labels | None
) -> TensorListing:
    if x.dtype.kind not in "uf" or (x.dtype.kind == "u" and x.dtype != np.uint8):
        raise DataRejected(f"{source}: x is {x.dtype}; give uint8, or floats in [0, 1]")
    layout = "NHWC" if x.dtype == np.uint8 else "NCHW"
    return list_tensors(x, y, classes, source, ids=ids, true_labels=true_labels, layout=layout, unit_range=True)
