"""torchvision files become the network that wrote them, seeing images as torchvision's own presets do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from memaudit.adapters import index, vision
from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.building import build, default_config
from memaudit.adapters.identify import identify
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.data.images.geometry import at_size
from memaudit.errors import ModelRejected, UsageError


def network(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.get_model(name, weights=None, **kwargs).eval()


def loaded(folder: Path, module: nn.Module, name: str | None = None, **options: Any) -> Adapter:
    save_file(module.state_dict(), folder / "model.safetensors")
    return choose(read(folder / "model.safetensors"), ModelOptions(**options), name)


# what a user saves: network, arguments, options; then the name it gets and the adapter's
LOADS: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("shufflenet_v2_x0_5", {"num_classes": 7}, {}, "torchvision:shufflenet_v2_x0_5", "torchvision"),
    ("squeezenet1_1", {"num_classes": 2}, {}, "torchvision:squeezenet1_1", "torchvision"),
    ("mobilenet_v3_small", {}, {}, "torchvision:mobilenet_v3_small", "torchvision"),
    ("regnet_x_400mf", {"num_classes": 5}, {}, "torchvision:regnet_x_400mf", "torchvision"),
    ("googlenet", {"num_classes": 5, "init_weights": False}, {}, "torchvision:googlenet", "torchvision"),
    (
        "googlenet",
        {"num_classes": 5, "init_weights": False, "aux_logits": False},
        {},
        "torchvision:googlenet",
        "torchvision",
    ),
    (
        "googlenet",
        {"num_classes": 5, "init_weights": False},
        {"arch": "torchvision:googlenet"},
        "torchvision:googlenet",
        "torchvision",
    ),
    ("resnet18", {"num_classes": 5}, {"arch": "torchvision:resnet18"}, "torchvision:resnet18", "torchvision"),
]


@pytest.mark.parametrize(("name", "kwargs", "options", "called", "adapter"), LOADS)
def test_a_torchvision_file_is_the_network_that_wrote_it(
    tmp_path: Path, name: str, kwargs: dict[str, Any], options: dict[str, Any], called: str, adapter: str
) -> None:
    original = network(name, **kwargs)
    found = loaded(tmp_path, original, **options)
    assert (found.architecture, found.name) == (called, adapter)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.forward(images), original(found.preprocess.normalise(images)))


def test_grey_images_through_an_exchanged_first_convolution(tmp_path: Path) -> None:
    original = network("resnet18", num_classes=4)
    original.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    found = loaded(tmp_path, original, arch="torchvision:resnet18")
    assert found.preprocess.input_size == (1, 224, 224)


# torchvision's names whose tensors timm has too: what each of timm's twins is to it
def test_what_both_libraries_compute_alike_is_one_candidate_and_what_differs_stays_two() -> None:
    same = [c.same for c in identify(build("torchvision:resnet50", {"num_classes": 7}, device="meta").state_dict())]
    assert ("resnet50", "torchvision:resnet50") in same
    assert {"resnetaa50", "resnetblur50"} <= {name for names in same for name in names}


def test_alike_was_seen_not_assumed() -> None:
    """The slow check of the index: the same tensors in both libraries give the same logits, blurred pooling others."""
    ours, theirs = index.describe("torchvision:resnet18"), index.describe("resnet18")
    blurred = index.describe("resnetblur18")
    assert ours is not None
    assert theirs is not None
    assert blurred is not None
    assert index.same_answers(theirs, ours)
    assert not index.same_answers(blurred, ours)


def test_every_torchvision_classifier_is_in_the_index_and_none_shares_tensors_with_another_unseen() -> None:
    entries = index.load_index()
    assert {e.architecture for e in entries} >= set(vision.names())
    ours = [e for e in entries if vision.is_vision(e.architecture)]
    for entry in ours:
        twins = [e for e in entries if e.body == entry.body and not vision.is_vision(e.architecture)]
        assert not twins or entry.like in {e.architecture for e in twins}, entry.architecture


@pytest.mark.parametrize("name", ["resnet50", "swin_t", "efficientnet_b1", "vit_b_16", "convnext_tiny"])
def test_every_preset_shows_the_network_what_torchvision_shows_it(name: str) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (301, 447, 3), dtype=np.uint8).repeat(2, 0))
    for weights in models.get_model_weights(name):
        architecture = f"torchvision:{name}"
        side = weights.transforms().crop_size[0]
        preset = vision.presets(architecture, side).get(weights.name)
        assert preset is not None
        from memaudit.adapters.preprocessing import resolve

        used = resolve(ModelOptions(), {}, preset, "torchvision")
        pixels = torch.from_numpy(np.array(at_size(image, used))).permute(2, 0, 1)[None].float() / 255
        assert torch.allclose(used.normalise(pixels)[0], weights.transforms()(image), atol=1e-6)


def test_undecided_presets_are_a_guess_and_said_to_be_one(tmp_path: Path) -> None:
    found = loaded(tmp_path, network("resnet50", num_classes=3), "torchvision")
    assert found.name == "torchvision"
    assert [p.crop_pct for p in found.presets] == pytest.approx([224 / 256, 224 / 232])
    assert "a guess" in found.preprocess.origin


def test_a_published_file_is_known_by_its_hash() -> None:
    assert vision.published("11ad3fa6" + "0" * 56) == ("torchvision:resnet50", "IMAGENET1K_V2")
    assert vision.published("0" * 64) is None


def test_names_that_do_not_exist_are_refused_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"torchvision .* has no architecture 'torchvision:resnet51'; closest"):
        loaded(tmp_path, network("resnet18"), arch="torchvision:resnet51")
    with pytest.raises(UsageError, match="has no architecture 'resnet18'"):
        loaded(tmp_path, network("resnet18"), "torchvision", arch="resnet18")
    with pytest.raises(ModelRejected, match=f"no architecture of torchvision {torchvision.__version__[:4]}"):
        loaded(tmp_path, timm.create_model("test_resnet"), "torchvision")


def test_default_config_of_a_position_table_is_for_its_own_size() -> None:
    assert default_config("torchvision:vit_h_14")["input_size"] == (3, 224, 224)
