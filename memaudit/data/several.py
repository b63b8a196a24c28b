"""Examples with several labels at once: each becomes one row for every label that is known of it.

Class `2 j` says that label `j` is absent, class `2 j + 1` that it is there; `name:0` and `name:1` are what they are
called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from memaudit.data.compact import Row
from memaudit.errors import DataRejected

# In place of 0 or 1: nobody asks, or knows.
UNKNOWN = -1


def paired_names(names: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Names of the classes, two a label.

    Args:
        names: of the labels; by default their numbers.
        count: of the model's classes.

    Raises:
        DataRejected: there are not half as many names as classes.
    """
    if names and count is not None and 2 * len(names) != count:
        raise DataRejected(
            f"the data declares {len(names)} labels, the model has {count // 2}; a label would name the wrong one",
            hint="list all of the model's labels, one per line in order, in a file: --class-order FILE",
        )
    labels = names or [str(j) for j in range((count or 0) // 2)]
    return tuple(f"{name}:{value}" for name in labels for value in (0, 1))


def label_matrix(values: np.ndarray, name: str, count: int, labels: int | None, source: str) -> np.ndarray:
    """`(N, L)` zeros, ones and `UNKNOWN` as int64.

    Raises:
        DataRejected: another shape, or other values.
    """
    array = np.asarray(values)
    if array.ndim != 2 or len(array) != count or (labels is not None and array.shape[1] != labels):
        wanted = f"({count}, {labels if labels is not None else 'labels'})"
        raise DataRejected(
            f"{source}: {name} has shape {array.shape}, not {wanted}: one column a label",
            hint="leave --multi-label out where an example has one label",
        )
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1, UNKNOWN)).all():
        raise DataRejected(f"{source}: {name} holds other values than 0, 1 and {UNKNOWN} (not asked)")
    return array.astype(np.int64)


def expanded(rows: Sequence[Row], y: np.ndarray, truths: np.ndarray | None) -> Iterator[Row]:
    """One row for each label that `y` `(N, L)` knows of each of `rows`."""
    for row in rows:
        for label in np.flatnonzero(y[row.index] != UNKNOWN).tolist():
            truth = None if truths is None else int(truths[row.index, label])
            yield replace(
                row,
                label=2 * label + int(y[row.index, label]),
                true_label=None if truth in (None, UNKNOWN) else 2 * label + int(truth or 0),
            )
