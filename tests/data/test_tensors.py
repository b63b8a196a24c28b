"""Library use: tensors and datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from memaudit.data import Preprocess, from_dataset, from_tensors
from memaudit.errors import DataRejected
from tests.data.test_read import SMALL, picture

RAW = Preprocess((3, 8, 8))
X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BYTES = (X * 255).to(torch.uint8)
Y = torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_are_the_networks_input_domain(dtype: torch.dtype) -> None:
    found = from_tensors(X.to(dtype), Y, preprocess=SMALL, num_classes=3)
    assert torch.equal(found.pixels, X.to(dtype))
    assert torch.equal(found.batch([2])[0], X[2].to(dtype).float())


def test_without_a_mean_any_finite_values_are_left_as_they_are() -> None:
    found = from_tensors(X * 9 - 3, Y, preprocess=RAW, num_classes=3)
    assert torch.equal(found.pixels, X * 9 - 3)


@pytest.mark.parametrize("x", [BYTES, BYTES.permute(0, 2, 3, 1), BYTES.permute(0, 2, 3, 1).numpy()])
def test_bytes_may_be_channels_first_or_last(x: torch.Tensor) -> None:
    assert torch.equal(from_tensors(x, Y, preprocess=SMALL, num_classes=3).pixels, BYTES)


def test_strided_and_gradient_tensors_serve_and_are_left_alone() -> None:
    x = X.flip(0).clone().requires_grad_(True)
    found = from_tensors(x.permute(0, 1, 3, 2), Y.tolist(), preprocess=SMALL, num_classes=3)
    assert torch.equal(found.pixels, X.flip(0).permute(0, 1, 3, 2))
    assert not found.pixels.requires_grad
    assert x.requires_grad


def test_read_only_and_big_endian_arrays_serve() -> None:
    x = X.numpy().astype(">f4")
    x.flags.writeable = False
    assert torch.equal(from_tensors(x, Y, preprocess=SMALL, num_classes=3).pixels, X)


def test_names_ids_notes_and_true_labels_reach_the_examples() -> None:
    found = from_tensors(
        X,
        Y,
        preprocess=SMALL,
        num_classes=3,
        class_names=list("abc"),
        ids=range(5),
        true_labels=[2] * 5,
        notes=["n"] * 5,
    )
    assert found.class_names == ("a", "b", "c")
    assert (found.examples[3].note, found.examples[3].declared_id) == ("n", "3")
    assert (found.examples[3].true_label, found.examples[3].source) == (2, "array")


AMBIGUOUS = torch.zeros(2, 3, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (AMBIGUOUS, [0, 0], "could be NCHW or NHWC"),
        (X.permute(0, 2, 3, 1), Y, "float x has shape"),
        (X * 255, Y, r"outside \[0, 1\]"),
        (torch.full_like(X, torch.nan), Y, "NaN or infinite"),
        (X.long(), Y, "x is int64"),
        (X > 0.5, Y, "x is bool"),
        (X.numpy().astype(object), Y, "x is object"),
        (X, Y.float(), "y is float32; labels are integers"),
        (X, Y[:, None], r"y has shape \(5, 1\)"),
        (X, Y + 3, "label 3 is no class"),
        (X, [0, 1, 2, 1], r"y has shape \(4,\)"),
        (X, [True] * 5, "y is bool"),
        (X[:0], [], "zero rows"),
        (torch.tensor(1.0), [], "zero rows"),
    ],
)
def test_tensors_the_network_does_not_take_are_refused(x: torch.Tensor, y: Any, message: str) -> None:
    with pytest.raises(DataRejected, match=message):
        from_tensors(x, y, preprocess=SMALL, num_classes=3)


def test_nan_is_refused_also_without_a_mean() -> None:
    with pytest.raises(DataRejected, match="row 2: a pixel is NaN"):
        from_tensors(
            torch.where(torch.arange(5)[:, None, None, None] == 2, torch.nan, X), Y, preprocess=RAW, num_classes=3
        )


def test_a_limit_counts_rows_as_in_the_source() -> None:
    found = from_tensors(X, Y, preprocess=SMALL, num_classes=3, limit=2)
    assert [e.index for e in found.examples] == [0, 2]
    assert torch.equal(found.pixels, X[[0, 2]])
    assert found.omitted == 3


class Pictures(Dataset[tuple[Image.Image, int]]):
    """Five PIL images of different sizes."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return picture(index, (8 + index, 9)), index % 3


class Stream(IterableDataset[tuple[torch.Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        return zip(X, Y.tolist(), strict=True)


def test_a_tensor_dataset_equals_its_tensors() -> None:
    whole = from_tensors(X, Y, preprocess=SMALL, num_classes=3)
    for dataset in (TensorDataset(X, Y), Stream(), [(x.numpy(), np.int64(y)) for x, y in zip(X, Y, strict=True)]):
        found = from_dataset(dataset, preprocess=SMALL, num_classes=3)
        assert torch.equal(found.pixels, whole.pixels)
        assert found.examples == whole.examples


def test_pil_images_go_through_the_geometry() -> None:
    from timm.data import create_transform

    transform = create_transform((3, 8, 8), interpolation="bicubic", crop_pct=0.9, normalize=False)
    preprocess = Preprocess((3, 8, 8), crop_pct=0.9)
    found = from_dataset(Pictures(), preprocess=preprocess, num_classes=3)
    assert torch.equal(found.pixels, torch.stack([transform(picture(i, (8 + i, 9))) for i in range(5)]))
    assert found.class_names == ("a", "b", "c")
    assert found.sha256 == from_dataset(Pictures(), preprocess=Preprocess((3, 4, 4)), num_classes=3).sha256


def test_a_limit_on_a_dataset_is_spread_or_takes_the_first() -> None:
    spread = from_dataset(TensorDataset(X, Y), preprocess=SMALL, num_classes=3, limit=2)
    assert ([e.index for e in spread.examples], spread.omitted) == ([0, 2], 3)
    first = from_dataset(Stream(), preprocess=SMALL, num_classes=3, limit=2)
    assert [e.index for e in first.examples] == [0, 1]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "zero items"),
        ([X[0]], r"item 0: a Tensor, not \(image, label\)"),
        ([("a.png", 1)], "item 0: its image is a str"),
        ([(X[0], 0.0)], "item 0: its label is a float"),
        ([(X[0], True)], "item 0: its label is a bool"),
        ([(X[0], torch.tensor([1, 2]))], "item 0: its label is a Tensor"),
        ([(X[0], 0), (X[1, :, :4], 1)], r"item 1 has shape \(3, 4, 8\), the first has \(3, 8, 8\)"),
        ([(X[0], 0), (X[1], 9)], "label 9 is no class"),
        ([(Image.new("F", (8, 8)), 0)], "mode 'F'"),
    ],
)
def test_datasets_that_are_no_labelled_images_are_refused(dataset: list[Any], message: str) -> None:
    with pytest.raises(DataRejected, match=message):
        from_dataset(dataset, preprocess=SMALL, num_classes=3)


def test_errors_of_the_datasets_own_code_come_through() -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            raise ZeroDivisionError("theirs")

    with pytest.raises(ZeroDivisionError, match="theirs"):
        from_dataset(Broken(), preprocess=SMALL, num_classes=3)
