"""A torch `Dataset` of (image, label): images may be PIL images, arrays or tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from memaudit.data.classes import Classes
from memaudit.data.decode import Progress, check_memory
from memaudit.data.examples import ExampleSet
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd, counted, oddities, to_channels
from memaudit.data.images.geometry import check_preprocess
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.worker import arrayed
from memaudit.data.tensors import as_tensor, list_tensors, tensor_id
from memaudit.errors import DataRejected


def from_dataset(
    dataset: Any,
    *,
    preprocess: Preprocess,
    num_classes: int | None,
    class_names: Sequence[str] = (),
    source: str = "dataset",
    limit: int | None = None,
    progress: Progress | None = None,
) -> ExampleSet:
    """The examples of `dataset`, read once, in order; an error of its own code comes through unchanged.

    Args:
        dataset: indexable with a length, or iterable; each item is `(image, label)`.
        preprocess: PIL images go through its geometry; arrays and tensors are taken as `from_tensors` takes them.
        class_names: by default the dataset's own `classes`, where there are as many as the model has.
        limit: read at most so many: evenly spaced if the dataset has a length, else the first.

    Raises:
        DataRejected: an item is no such pair, shapes are mixed, or values do not fit the network.
    """
    if preprocess.image:
        check_preprocess(preprocess)
    total, items = _items(dataset, limit)
    images: list[Tensor] = []
    identities, labels, indices = [], [], []
    odd: list[Odd] = []
    fitted = False
    for index, item in items:
        try:
            image, identity, own = _image(item, preprocess, source)
            labels.append(_label(item[1]))
            fitted = fitted or isinstance(item[0], Image.Image)
        except (RowError, Unreadable) as reason:
            raise DataRejected(f"{source}: item {index}: {reason}") from None
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise DataRejected(
                f"{source}: item {index} has shape {tuple(image.shape)}, the first has {tuple(images[0].shape)}",
                hint="let the dataset's transform end in one size, or give PIL images",
            )
        images.append(image)
        identities.append(identity)
        odd.append(own)
        indices.append(index)
        check_memory(len(images), image.numel() * image.element_size(), source, dataset=True)
        if progress:
            progress(len(images), total or len(images))
    if not images:
        raise DataRejected(f"{source} has zero items; nothing to audit")
    classes = Classes.of(class_names or _own_names(dataset, num_classes), num_classes)
    listing = list_tensors(torch.stack(images), labels, classes, source, layout="NCHW" if fitted else None)
    read = replace(listing, identities=tuple(identities)).load(preprocess)
    numbered = tuple(e.model_copy(update={"index": indices[e.index]}) for e in read.examples)
    whole = len(dataset) if hasattr(dataset, "__len__") else len(images)
    return replace(read, examples=numbered, omitted=whole - len(images), seen=counted(odd))


def _items(dataset: Any, limit: int | None) -> tuple[int | None, Iterator[tuple[int, Any]]]:
    """How many items will come, if that is known, and each with its index."""
    if not hasattr(dataset, "__len__"):
        return limit, enumerate(islice(dataset, limit))
    count = len(dataset)
    chosen = count if limit is None else min(limit, count)
    positions = (i * count // chosen for i in range(chosen))
    return chosen, ((i, dataset[i]) for i in positions)


def _image(item: Any, preprocess: Preprocess, source: str) -> tuple[Tensor, str, Odd]:
    """The image of `item` as a tensor, its content id from before any resizing, and what is odd about it."""
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise RowError(f"a {type(item).__name__}, not (image, label)")
    image = item[0]
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image) if preprocess.exif == "apply" else image
        taken = to_channels(upright, preprocess.input_size[0], preprocess.bit_depth)
        odd = oddities(image)
        content = torch.from_numpy(np.array(upright if odd & Odd.DEEP else taken))
        return torch.from_numpy(np.array(arrayed(taken, preprocess))), tensor_id(content), odd
    if isinstance(image, np.ndarray):
        image = as_tensor(image, source)
    if not isinstance(image, Tensor):
        raise RowError(f"its image is a {type(image).__name__}; give a PIL image, an array or a tensor")
    image = image.detach().cpu()
    return image, tensor_id(image), Odd(0)


def _label(value: Any) -> int:
    label = value.item() if isinstance(value, Tensor | np.generic) and value.ndim == 0 else value
    if isinstance(label, bool) or not isinstance(label, int):
        raise RowError(f"its label is a {type(value).__name__}, not an integer")
    return label


def _own_names(dataset: Any, num_classes: int | None) -> tuple[str, ...]:
    names = getattr(dataset, "classes", ())
    fits = isinstance(names, tuple | list) and len(names) == num_classes and all(isinstance(n, str) for n in names)
    return tuple(names) if fits and len(set(names)) == len(names) else ()
