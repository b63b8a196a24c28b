"""Views of images: against plain flips, crops and resizing; and which of them are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.adapters.base import Adapter
from memaudit.audits.memorization.views import seen
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.engine.views import STEP, VIEWS, ZOOM, View, looks, usable, varied


def images(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_a_mirrored_view_is_a_flip() -> None:
    assert torch.allclose(View(mirror=True)(images(3)), images(3).flip(-1), atol=1e-5)


def test_a_moved_view_is_a_crop_of_the_image_with_its_edges_repeated() -> None:
    wide = F.pad(images(3), (2, 2, 2, 2), mode="replicate")
    assert torch.allclose(View(down=STEP, right=-STEP)(images(3)), wide[:, :, 4:36, 0:32], atol=1e-5)
    both = View(down=STEP, right=STEP, mirror=True)(images(3))
    assert torch.allclose(both, wide[:, :, 4:36, 4:36].flip(-1), atol=1e-5)


def test_a_zoomed_view_is_a_resized_crop() -> None:
    corner = F.interpolate(images(3)[:, :, :26, 6:], size=32, mode="bilinear", align_corners=False)
    found = View(down=ZOOM - 1, right=1 - ZOOM, zoom=ZOOM)(images(3))
    assert torch.allclose(
        found[:, :, 1:-1, 1:-1], corner[:, :, 1:-1, 1:-1], atol=1e-5
    )  # at a crop's edge it has no more


def test_each_image_has_a_view_of_its_own() -> None:
    which = torch.tensor([0, 3, len(VIEWS) - 1, 3])
    found = varied(images(4), VIEWS, which)
    for row, number in enumerate(which.tolist()):
        assert torch.allclose(found[row], VIEWS[number](images(4)[[row]])[0], atol=1e-6)


class Sides(nn.Module):
    """Which half of the image is brighter: a mirror image has the other label."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return 50 * torch.stack([x[..., :half].mean((1, 2, 3)), x[..., half:].mean((1, 2, 3))], 1)


def test_views_that_change_what_is_seen_are_not_asked() -> None:
    shape = Preprocess((3, 8, 8), origin="given")
    pixels = images(40, 8)
    labels = torch.arange(40) % 2
    pixels[labels == 0, :, :, :4] += 1
    pixels[labels == 1, :, :, 4:] += 1
    examples = from_tensors(pixels, labels, preprocess=shape, num_classes=2, source="drawn")
    evaluator = Evaluator(Adapter(Sides().eval(), architecture="sides", preprocess=shape, reason="a test"), 16)
    panel = Panel(examples, range(40))
    used, found = seen(evaluator, [panel], labels, torch.ones(40, dtype=torch.bool))
    assert used == [view for view in VIEWS if not view.mirror]
    upright = torch.stack([Sides()(view(pixels)).softmax(1) for view in VIEWS if not view.mirror]).mean(0)
    assert torch.allclose(found[0], upright, atol=1e-5)
    mirrored, _ = seen(evaluator, [panel], 1 - labels, torch.ones(40, dtype=torch.bool))
    assert mirrored == [view for view in VIEWS if view.mirror]
    before = evaluator.passes["audit forward"]
    assert usable(evaluator, panel) == used
    assert looks(evaluator, panel) == evaluator.passes["audit forward"] - before
    wrong = Panel(examples.labelled((1 - labels).tolist()), range(40))
    assert usable(evaluator, wrong) == []  # nothing is known that a view could keep


def test_what_is_no_image_has_no_views() -> None:
    shape = Preprocess((6,), origin="given")
    table = from_tensors(torch.rand(10, 6), torch.arange(10) % 2, preprocess=shape, num_classes=2, source="drawn")
    network = Adapter(nn.Linear(6, 2).eval(), architecture="linear", preprocess=shape, reason="a test")
    known = torch.ones(10, dtype=torch.bool)
    evaluator, panel = Evaluator(network, 4), Panel(table, range(10))
    assert seen(evaluator, [panel], table.labels, known) == ([], [])
    assert usable(evaluator, panel) == []
    assert looks(evaluator, panel) == 0
