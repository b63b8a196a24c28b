"""A size of images that nobody said is tried on the reference; the one they have themselves is taken, another asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet, Preprocess
from memaudit.data.tensors import from_tensors
from memaudit.errors import PremiseBroken
from memaudit.pipeline.library import wrap
from memaudit.pipeline.load import settle
from memaudit.pipeline.sizes import settle_size

LABELS = torch.arange(120) % 3
GUESS = Preprocess((3, 16, 16), origin="a default", origins=(("input_size", "a default"),))


class BySize(nn.Module):
    """Sure of the brightest channel where images have `rows` rows, and of nothing else."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.conv, self.rows = nn.Conv2d(3, 3, 1), rows

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)) + 0 * self.conv(x).mean((2, 3))
        return means if x.shape[2] == self.rows else means.flip(1)


def network(rows: int, guess: Preprocess = GUESS) -> Adapter:
    return wrap(BySize(rows), guess)


def named() -> Any:
    return SimpleNamespace(path=Path("model.pth"))


def reader(side: int) -> Any:
    """Images of `side` pixels, whose brightest channel is their label."""
    colours = 80 + 100 * nn.functional.one_hot(LABELS, 3)
    noise = np.random.default_rng(0).integers(0, 40, (120, side, side, 3))
    images = (colours[:, None, None].numpy() + noise).astype(np.uint8)

    def read(used: Adapter, most: int | None) -> ExampleSet:
        return from_tensors(images[:most], LABELS[:most], preprocess=used.preprocess, num_classes=3)

    return read


def test_the_size_that_images_have_is_taken_where_it_fits() -> None:
    adapter = network(32)
    (warning,) = settle_size([adapter], reader(32), "cpu")
    assert warning.code == "MEM907"
    assert "32 x 32, their own size" in warning.message
    assert adapter.preprocess.input_size == (3, 32, 32)
    assert dict(adapter.preprocess.origins)["input_size"] == "examples"
    assert settle_size([adapter], reader(32), "cpu") == ()


def test_a_size_that_images_do_not_have_is_asked() -> None:
    adapter = network(32)
    with pytest.raises(PremiseBroken, match=r"MEM909.* 0.344, and 1.000 with images of 32 x 32") as refused:
        settle_size([adapter], reader(40), "cpu")
    assert refused.value.hint.endswith("--input-size 3,32,32")
    assert adapter.preprocess == GUESS


def test_what_the_user_said_stays() -> None:
    said = Preprocess((3, 16, 16), origins=(("input_size", "flags"),))
    assert settle_size([network(32, said)], reader(32), "cpu") == ()


def test_a_network_that_sees_well_is_not_asked() -> None:
    adapter = network(16)
    assert settle_size([adapter], reader(32), "cpu") == ()
    assert adapter.preprocess == GUESS


def test_of_several_networks_the_size_comes_first() -> None:
    """At the guess both give a third of the labels, and neither is better."""
    found = [network(0), network(32)]
    assert [w.code for w in settle_size(found, reader(32), "cpu")] == ["MEM907"]
    assert [a.preprocess.input_size for a in found] == [(3, 32, 32)] * 2
    settled = settle(named(), found, reader(32), "cpu")
    assert settled.adapter is found[1]


def test_several_networks_at_chance_are_not_a_question_of_the_architecture() -> None:
    with pytest.raises(PremiseBroken, match="fits 2 architectures, and each does near chance") as refused:
        settle(named(), [network(0), network(0)], reader(16), "cpu")
    assert "--class-order" in refused.value.hint


def test_images_none_of_which_could_be_read_settle_nothing() -> None:
    """Whoever reads them all says why; here the mean of nothing raised ValueError."""
    empty = reader(16)(network(16), 3).subset([])
    assert settle_size([network(32)], lambda used, most: empty, "cpu") == ()
