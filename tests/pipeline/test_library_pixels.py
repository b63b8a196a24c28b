"""A library call tries on the reference what the command line tries: how pictures and values reached the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

import memaudit
from memaudit.data import Preprocess
from memaudit.errors import PremiseBroken, UsageError
from memaudit.pipeline.library import wrap
from memaudit.report.document import Report
from tests.real_inputs.pictures import Fresh, fit, pictures

FLAGGED, TRAIN = 12, 120
FAST = {"profile": "fast", "max_units": 2, "device": "cpu"}
Row = tuple[Any, int]


@cache
def rows(save: Callable[[np.ndarray, int], Any]) -> tuple[list[Row], list[Row], list[Row]]:
    """Flagged, training (the flagged first) and reference pictures, as `save` makes them of pixels and a number."""
    x, truth = pictures()
    labels = [int(y) if n >= FLAGGED else (int(y) + 1) % 3 for n, y in enumerate(truth)]
    made = {n: (save(x[n], n), labels[n]) for n in (*range(TRAIN), *range(300, 440))}
    return ([made[n] for n in range(FLAGGED)], [made[n] for n in range(TRAIN)], [made[n] for n in range(300, 440)])


def trained(training: Sequence[Row], load: Callable[[Any], Tensor]) -> nn.Module:
    return fit(torch.stack([load(image) for image, _ in training]), [label for _, label in training], network=Fresh)


def fitted(report: Report) -> int:
    return sum(f.fitted for f in report.findings)


def warned(report: Report) -> dict[str, str]:
    return {w.code: w.message for w in report.warnings}


def turned(pixels: np.ndarray, n: int) -> Image.Image:
    exif, file = Image.Exif(), BytesIO()
    exif[0x0112] = (6, 3, 8, 5)[n % 4]
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return Image.open(file)


def deep(pixels: np.ndarray, n: int) -> Image.Image:
    return Image.fromarray((pixels.astype(np.float64).mean(2) / 255 * 4095).astype(np.uint16))


def plain(pixels: np.ndarray, n: int) -> Image.Image:
    return Image.fromarray(pixels)


def scaled(image: Image.Image) -> Tensor:
    return torch.tensor(np.array(image).astype(np.float32) / 4095).expand(3, -1, -1)


def test_photographs_are_turned_where_that_fits_the_reference() -> None:
    flagged, training, reference = rows(turned)
    network = trained(training, lambda image: to_tensor(ImageOps.exif_transpose(image)))
    report = memaudit.audit(network, flagged, reference, **FAST)
    assert fitted(report) == FLAGGED
    assert "turned by their orientation tag" in warned(report)["MEM914"]
    assert "which is applied" in warned(report)["MEM911"]


def test_photographs_stay_as_they_lie_where_that_fits() -> None:
    flagged, training, reference = rows(turned)
    report = memaudit.audit(trained(training, to_tensor), flagged, reference, **FAST)
    assert fitted(report) == FLAGGED
    assert "MEM914" not in warned(report)


@pytest.mark.parametrize("said", [True, False])
def test_values_of_twelve_bits_are_taken_by_the_depth_that_is_said_or_fits(said: bool) -> None:
    flagged, training, reference = rows(deep)
    network = trained(training, scaled)
    shape = Preprocess((3, 16, 16), bit_depth=12) if said else Preprocess((3, 16, 16))
    report = memaudit.audit(network, flagged, reference, preprocess=shape, **FAST)
    assert fitted(report) == FLAGGED
    assert ("MEM914" in warned(report)) == (not said)


def test_deep_pictures_are_asked_for_where_the_reference_has_none() -> None:
    flagged, _, _ = rows(deep)
    _, training, reference = rows(plain)
    with pytest.raises(UsageError) as refused:
        memaudit.audit(trained(training, to_tensor), flagged, reference, preprocess=Preprocess((3, 16, 16)), **FAST)
    assert "bit_depth=12" in refused.value.hint
    assert "--" not in refused.value.hint


@pytest.mark.parametrize(
    ("prepare", "argument"),
    [(lambda x: 255 * x, "std=(0.00392157"), (lambda x: x.flip(0), "bgr=True")],
    ids=["0 to 255", "bgr"],
)
def test_the_way_that_fits_better_is_named_as_an_argument(prepare: Callable[[Tensor], Tensor], argument: str) -> None:
    flagged, training, reference = rows(plain)
    network = trained(training, lambda image: prepare(to_tensor(image)))
    with pytest.raises(PremiseBroken, match="MEM909") as refused:
        memaudit.audit(network, flagged, reference, **FAST)
    assert argument in refused.value.hint
    said = eval(refused.value.hint.split("preprocess=", 1)[1], {"Preprocess": Preprocess})
    assert fitted(memaudit.audit(network, flagged, reference, preprocess=said, **FAST)) == FLAGGED


def test_the_logits_below_a_softmax_are_told_of() -> None:
    flagged, training, reference = rows(plain)
    network = nn.Sequential(trained(training, to_tensor), nn.Softmax(1))
    assert "logits below it" in warned(memaudit.audit(network, flagged, reference, **FAST))["MEM912"]


def test_an_adapter_keeps_the_preprocessing_it_came_with() -> None:
    flagged, training, reference = rows(turned)
    network = trained(training, lambda image: to_tensor(ImageOps.exif_transpose(image)))
    adapter = wrap(network, Preprocess((3, 16, 16)))
    assert fitted(memaudit.audit(adapter, flagged, reference, **FAST)) == FLAGGED
    assert adapter.preprocess == Preprocess((3, 16, 16))
