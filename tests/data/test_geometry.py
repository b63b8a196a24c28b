"""Geometry equals timm's evaluation transform, bit for bit in uint8."""

from __future__ import annotations

import numpy as np
import pytest
from timm.data import create_transform

from memaudit.data import Preprocess
from memaudit.data.images import RowError
from memaudit.data.images.geometry import at_size
from memaudit.data.images.worker import as_array
from tests.data.test_read import picture

SIZES = [(40, 40), (57, 40), (40, 57), (33, 91), (8, 8), (7, 300), (31, 32), (32, 32), (1, 5), (64, 63)]
MEAN = (0.4, 0.5, 0.6)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize(
    ("input_size", "crop_pct"), [((32, 32), 0.875), ((32, 32), 1.0), ((24, 36), 0.9), ((31, 31), 0.95)]
)
def test_fit_equals_timm(crop_mode: str, interpolation: str, input_size: tuple[int, int], crop_pct: float) -> None:
    timm = create_transform(
        input_size=(3, *input_size),
        is_training=False,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=MEAN,
        std=(1.0, 1.0, 1.0),
        normalize=False,
    )
    ours = Preprocess((3, *input_size), crop_pct, interpolation, mean=MEAN, crop_mode=crop_mode)
    for seed, size in enumerate(SIZES):
        image = picture(seed, size)
        if image.size == input_size[::-1]:  # prepared by its owner: nothing is resized or cropped again
            assert at_size(image, ours) is image
            continue
        try:
            expected = timm(image).numpy()
        except ValueError:  # Pillow: height and width must be > 0
            with pytest.raises(RowError, match="too narrow"):
                at_size(image, ours)
            continue
        assert np.array_equal(as_array(at_size(image, ours)), expected), size


def test_one_channel_images_keep_their_axis_and_pad_with_a_mean_of_one_value() -> None:
    image = picture(0, (9, 4), "L")
    array = as_array(at_size(image, Preprocess((1, 9, 9), crop_mode="border", mean=(0.5,))))
    assert array.shape == (1, 9, 9)
    assert array[0, 0].tolist() == [128] * 9
    assert np.array_equal(array[0, 2:6], np.asarray(image))


def test_a_sliver_that_would_be_enormous_when_resized_is_refused() -> None:
    with pytest.raises(RowError, match="20000 x 1 is too narrow"):
        at_size(picture(0, (20000, 1)), Preprocess((3, 224, 224), crop_pct=0.875))
