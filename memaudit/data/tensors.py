"""Examples that are already numbers: checked against what the network takes, then an `ExampleSet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memaudit.data.classes import Classes
from memaudit.data.compact import Examples, Row, Rows, indices_of, labels_of, taken
from memaudit.data.decode import PART, Progress, check_memory, in_parts
from memaudit.data.examples import ExampleSet, content_id, distinct
from memaudit.data.images import RowError
from memaudit.data.images.geometry import at_size, check_preprocess
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.worker import as_array
from memaudit.data.listing import Listing
from memaudit.data.ondemand import OnDemand, Store
from memaudit.data.rejections import Rejections
from memaudit.data.several import expanded, label_matrix
from memaudit.data.values import as_values, sixteen_bit
from memaudit.errors import DataRejected

Labels = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class TensorListing(Listing):
    """Rows whose values are `x[row.index]`.

    Attributes:
        x: `(N, ...)`, images or anything else that a network takes.
        layout: `NHWC` or `NCHW` where the source's contract says; `None`: inferred from the shape.
        unit_range: floats must be in [0, 1] also when the network declares no normalisation.
        identities: content ids of `x`'s rows where `x` is no longer what they were computed from.
        several: `(N, L)` answers where an example has several labels, and their true values where those are known;
            `rows` then have none of their own.
    """

    x: Tensor
    layout: str | None = None
    unit_range: bool = False
    identities: tuple[str, ...] = ()
    several: tuple[np.ndarray, np.ndarray | None] | None = None

    def load(self, preprocess: Preprocess, limit: int | None = None, progress: Progress | None = None) -> ExampleSet:
        """Check and shape the values; there is nothing that could be unreadable.

        uint8 images of another size than the network's go through the same geometry as files; those of its size are
        taken as they are. Floats are the network's input domain: `[0, 1]` before normalisation. What is no image is
        taken as it is.

        Raises:
            DataRejected: shape, layout, dtype or values are not what the network takes.
        """
        if preprocess.image:
            check_preprocess(preprocess)
        rows = asked = self.chosen(limit)
        if self.several is not None:
            rows = Rows.of(expanded(asked, *self.several))
            each = -(-len(rows) // max(1, len(asked)))
            check_memory(len(asked), each * self.x[0].numel() * self.x.element_size(), self.source)
        indices = indices_of(rows)
        x = self.x if indices == list(range(len(self.x))) else self.x[indices]
        found = (self.identities[i] for i in indices) if self.identities else map(tensor_id, x)
        identities = np.fromiter((int(one, 16) for one in found), np.uint64, len(rows))
        examples = Examples(rows, np.arange(len(rows)), identities, labels_of(rows))
        keep, duplicates = distinct(examples, self.paired)
        if len(keep) < len(examples):
            x, rows, examples = x[keep], taken(rows, keep), examples.take(keep)
        return ExampleSet(
            examples,
            self._values(x, preprocess, rows, progress),
            self.source,
            self.class_names,
            duplicates=duplicates,
            omitted=len(self.rows) - len(asked),
            seen={"resized": len(keep)} if self._resized(preprocess) else {},
        )

    def _resized(self, preprocess: Preprocess) -> bool:
        """Whether these are images that are resized."""
        return (
            self.x.dtype == torch.uint8
            and preprocess.image
            and sorted(self.x.shape[1:]) != sorted(preprocess.input_size)
        )

    def _values(
        self, x: Tensor, preprocess: Preprocess, rows: Sequence[Row], progress: Progress | None
    ) -> Tensor | OnDemand:
        """`x`, rows of the array, as the network's input before normalisation."""
        if not preprocess.image:
            return as_values(x, preprocess, rows, self.source)
        if x.dtype in (torch.uint8, torch.uint16):
            first = _channels_first(x, preprocess, self.layout, self.source)
            if x.dtype == torch.uint8:
                return _fitted(first, preprocess, self.source, progress)
            return _checked_floats(sixteen_bit(first, self.source), preprocess, True, rows, self.source)
        if not x.is_floating_point():
            raise DataRejected(f"{self.source}: x is {_dtype(x)}; give uint8, uint16, or floats in [0, 1]")
        return _checked_floats(x, preprocess, self._unit(preprocess), rows, self.source)

    def _unit(self, preprocess: Preprocess) -> bool:
        """Whether floats must be in [0, 1]: a normalisation expects it, or whole numbers betray images never scaled."""
        if preprocess.mean or not preprocess.raw:
            return self.unit_range or bool(preprocess.mean)
        some = self.x[:: max(1, len(self.x) // 8)].float()
        pixels = bool((some == some.round()).all()) and 1 < float(some.max()) <= 255 and float(some.min()) >= 0
        return self.unit_range and pixels


def from_tensors(
    x: Tensor | np.ndarray,
    y: Labels,
    *,
    preprocess: Preprocess,
    num_classes: int | None,
    class_names: Sequence[str] = (),
    ids: Sequence[object] | None = None,
    true_labels: Labels | None = None,
    notes: Sequence[str | None] | None = None,
    source: str = "tensors",
    limit: int | None = None,
    progress: Progress | None = None,
    paired: bool = False,
) -> ExampleSet:
    """Labelled examples that are in memory.

    Args:
        x: images `(N, C, H, W)`: floats in the network's input domain ([0, 1] before normalisation; anything finite
            when `preprocess` normalises nothing), or uint8 or uint16 `(N, H, W, C)` or `(N, C, H, W)`; or whatever
            else the network takes.
        y: `(N,)` integer labels.
        preprocess: input shape and normalisation of the network.
        num_classes: of the model; `None` when unknown.
        ids: unique names of the rows; they lead the examples' notes.
        true_labels: `(N,)`, where known.
        paired: an example may have several labels at once: `y` and `true_labels` are `(N, L)` of 0, 1 and -1.

    Raises:
        DataRejected: values, shapes or labels are not what the network takes.
    """
    classes = Classes.of(class_names, num_classes)
    listing = list_tensors(x, y, classes, source, ids=ids, true_labels=true_labels, notes=notes, paired=paired)
    return listing.load(preprocess, limit, progress)


def list_tensors(
    x: Tensor | np.ndarray,
    y: Labels,
    classes: Classes,
    source: str,
    *,
    ids: Sequence[object] | None = None,
    true_labels: Labels | None = None,
    notes: Sequence[str | None] | None = None,
    layout: str | None = None,
    unit_range: bool = False,
    paired: bool = False,
) -> TensorListing:
    """Rows of `x`, labels checked; the values are checked when they are loaded.

    Args:
        paired: an example has several labels, and `y` is `(N, L)`.

    Raises:
        DataRejected: there is no row, labels do not fit, or an id is there twice.
    """
    images = as_tensor(x, source) if isinstance(x, np.ndarray) else x.detach().cpu()
    if images.ndim == 0 or len(images) == 0:
        raise DataRejected(f"{source}: x has zero rows; nothing to audit")
    if images.is_complex():
        raise DataRejected(f"{source}: x is {_dtype(images)}; give real numbers")
    count = len(images)
    several = _several(y, true_labels, count, classes, source) if paired else None
    labels = [0] * count if paired else _integers(y, "y", count, source)
    single = true_labels is None or paired
    truths = [None] * count if single else _integers(true_labels, "true_label", count, source)  # type: ignore[arg-type]
    for name, column in (("id", ids), ("notes", notes)):
        if column is not None and len(column) != count:
            raise DataRejected(f"{source}: {len(column)} values in {name} for {count} images")
    rejections, rows, seen = Rejections(source), [], dict[str, int]()
    for i, (label, truth) in enumerate(zip(labels, truths, strict=True)):
        identity = None if ids is None else str(ids[i])
        try:
            if identity is not None and seen.setdefault(identity, i) != i:
                raise RowError(f"its id is already the id of row {seen[identity]}")
            true_label = None if truth is None else classes.index(truth)
            note = notes[i] if notes is not None else None
            rows.append(Row("array", classes.index(label), i, true_label=true_label, note=note, id=identity))
        except RowError as reason:
            rejections.add(f"row {i}", reason)
    rejections.check(count)
    return TensorListing(
        source, Rows.of(rows), classes.names, images, layout, unit_range, several=several, paired=paired
    )


def _several(
    y: Labels, truths: Labels | None, count: int, classes: Classes, source: str
) -> tuple[np.ndarray, np.ndarray | None]:
    labels = None if classes.count is None else classes.count // 2
    values, known = (None if v is None else np.asarray(v) for v in (y, truths))
    assert values is not None  # noqa: S101 - y is given
    true_labels = None if known is None else label_matrix(known, "true_label", count, labels, source)
    return label_matrix(values, "y", count, labels, source), true_labels


def tensor_id(image: Tensor) -> str:
    """The content id of one row: hash of its dtype, shape and values."""
    values = image.contiguous().view(torch.uint8) if image.ndim else image.reshape(1).view(torch.uint8)
    return content_id(f"{_dtype(image)} {tuple(image.shape)} ".encode() + values.numpy().tobytes())


def as_tensor(x: np.ndarray, source: str) -> Tensor:
    """`x` as a tensor of the same shape, sharing memory where that is safe.

    Raises:
        DataRejected: it holds no numbers.
    """
    if x.dtype.kind not in "biuf":
        raise DataRejected(f"{source}: x is {x.dtype}; give uint8, uint16, or floats in [0, 1]")
    return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))


def _integers(values: Labels, name: str, count: int, source: str) -> list[int]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    wrong = "" if array.dtype.kind in "iu" else f"is {array.dtype}; labels are integers"
    if not wrong and array.shape != (count,):
        wrong = f"has shape {array.shape} for {count} images; give one label each"
    if wrong:
        raise DataRejected(
            f"{source}: {name} {wrong}",
            hint="one index a row: y.argmax(1) of one-hot rows, y.ravel() of a column, y.astype(int) of whole floats",
        )
    return [int(v) for v in array]


def _channels_first(x: Tensor, preprocess: Preprocess, layout: str | None, source: str) -> Tensor:
    """uint8 or uint16 `x` as a view `(N, C, H, W)`."""
    channels = preprocess.input_size[0]
    if x.ndim == 3 and channels == 1:
        return x[:, None]
    shape = tuple(x.shape)
    first, last = x.ndim == 4 and shape[1] == channels, x.ndim == 4 and shape[-1] == channels
    if layout == "NHWC" and first and not last:
        raise DataRejected(
            f"{source}: uint8 x has shape {shape}, channels first", hint="save it as NHWC: x.transpose(0, 2, 3, 1)"
        )
    if layout is None and first and last:
        raise DataRejected(
            f"{source}: uint8 x of shape {shape} could be NCHW or NHWC",
            hint="give floats, which are always NCHW: x.float() / 255",
        )
    if not first and not last:
        raise DataRejected(
            f"{source}: uint8 x has shape {shape}, the network takes {channels} channels", hint="give (N, H, W, C)"
        )
    return x.permute(0, 3, 1, 2) if last and layout != "NCHW" else x


def _fitted(x: Tensor, preprocess: Preprocess, source: str, progress: Progress | None) -> Tensor | OnDemand:
    """uint8 `(N, C, H, W)` at the network's size."""
    channels, height, width = preprocess.input_size
    if x.shape[2:] == (height, width):
        if progress:
            progress(len(x), len(x))
        return x.contiguous()
    if channels not in (1, 3) or min(x.shape[2:]) < 1:
        raise DataRejected(
            f"{source}: images of shape {tuple(x.shape[1:])}, the network takes {preprocess.input_size}; resize them"
        )

    def fit_one(index: int) -> np.ndarray:
        values = x[index].permute(1, 2, 0).contiguous().numpy()
        return as_array(at_size(Image.fromarray(values if channels == 3 else values[..., 0]), preprocess))

    def fit(places: Sequence[int]) -> list[np.ndarray]:
        return [fit_one(place) for place in places]

    store = Store(fit, len(x), preprocess.input_size, torch.uint8)
    try:
        for index, values in enumerate(in_parts(fit, len(store.kept), PART, progress)):
            store.keep(index, values)
    except RowError as reason:  # all rows have one shape, so it is about all of them
        raise DataRejected(f"{source}: {reason}") from None
    return store.kept if store.used == len(x) else OnDemand(store, torch.arange(len(x)))


def _checked_floats(x: Tensor, preprocess: Preprocess, unit: bool, rows: Sequence[Row], source: str) -> Tensor:
    """`x` itself, when it is `(N, C, H, W)` of the network's size, finite and, if `unit`, within [0, 1]."""
    size = preprocess.input_size
    if x.ndim == 3 and size[0] == 1:
        x = x[:, None]
    shape = tuple(x.shape)
    if shape[1:] != size:
        swapped = len(shape) == 4 and (shape[3], shape[1], shape[2]) == size
        raise DataRejected(
            f"{source}: float x has shape {shape}, the network takes (N, {', '.join(map(str, size))})",
            hint="it is NHWC: transpose it with x.transpose(0, 3, 1, 2)"
            if swapped
            else "resize it first, or give uint8",
        )
    flat = x.flatten(1)
    low, high = flat.amin(1).tolist(), flat.amax(1).tolist()
    rejections = Rejections(source)
    for row, lowest, highest in zip(rows, low, high, strict=True):
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            rejections.add(f"row {row.index}", "a pixel is NaN or infinite")
        elif unit and not (lowest >= 0 and highest <= 1):
            rejections.add(f"row {row.index}", f"values from {lowest:.4g} to {highest:.4g}, outside [0, 1]")
    if rejections.reasons:
        signed = min(low) < 0
        if not np.isfinite((low, high)).all():
            rejections.check(len(x), hint="fill missing values in as the training did, or leave the rows out")
        fix = "undo its normalisation; the audit applies mean and std" if signed else "divide it by 255, or give uint8"
        rejections.check(len(x), hint=fix)
    return x.contiguous()


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
