"""Architectures told from names and shapes: small ones here, all of timm in tests/benchmarks/identify.py."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from memaudit.adapters import index, vision
from memaudit.adapters.building import build
from memaudit.adapters.compute import description, signature
from memaudit.adapters.identify import identify
from memaudit.errors import ModelRejected


def shapes_of(architecture: str, **kwargs: Any) -> dict[str, Tensor]:
    return build(architecture, kwargs, device="meta").state_dict()


def names(tensors: dict[str, Tensor]) -> list[tuple[str, ...]]:
    return [candidate.same for candidate in identify(tensors)]


# A sample across families; the benchmark has every one.
SAMPLE = [
    *timm.list_models("test_*"),
    "resnet26t",
    "levit_128s",
    "mixer_s32_224",
    "crossvit_tiny_240",
    "xcit_nano_12_p16_224",
]


@pytest.mark.parametrize("classes", [None, 7])
@pytest.mark.parametrize("architecture", SAMPLE)
def test_the_true_architecture_is_always_among_the_candidates(architecture: str, classes: int | None) -> None:
    kwargs = {} if classes is None else {"num_classes": classes}
    found = names(shapes_of(architecture, **kwargs))
    assert sum(architecture in same for same in found) == 1
    assert len(found) == (2 if architecture in ("test_efficientnet_gn", "test_efficientnet_ln") else 1)


# how it was made -> the keyword arguments that identification gives back
KWARGS: list[tuple[str, dict[str, Any]]] = [
    ("test_resnet", {"num_classes": 7}),
    ("test_resnet", {"num_classes": 1, "in_chans": 1}),
    ("test_vit", {"num_classes": 7, "in_chans": 6, "img_size": 224}),
    ("test_vit2", {"num_classes": 7, "img_size": 96}),
    ("test_maxvit", {"num_classes": 7, "img_size": 320}),
    ("test_coatnet", {"num_classes": 7, "img_size": 192}),
    ("mixer_s32_224", {"num_classes": 7, "img_size": 320}),
    ("levit_128s", {"num_classes": 7, "img_size": 448}),
    ("beit_base_patch16_224", {"num_classes": 7, "img_size": 320}),
]


@pytest.mark.parametrize(("architecture", "kwargs"), KWARGS)
def test_classes_channels_and_image_size_are_read_off(architecture: str, kwargs: dict[str, Any]) -> None:
    candidates = [c for c in identify(shapes_of(architecture, **kwargs)) if architecture in c.same]
    assert [dict(c.kwargs) for c in candidates] == [kwargs]


# Names of equal shapes: those in one tuple compute the same, those apart do not.
TWINS = [
    [("efficientnet_b0",), ("tf_efficientnet_b0",), ("efficientnet_blur_b0",)],
    [("resnet18", "torchvision:resnet18"), ("resnetblur18",)],
    [("nest_tiny",), ("nest_tiny_jx",)],
    [("vit_tiny_patch16_224", "deit_tiny_patch16_224")],
    [("efficientnet_es", "efficientnet_es_pruned"), ("tf_efficientnet_es",)],
    [("xcit_nano_12_p16_224", "xcit_nano_12_p16_384")],
    [("swinv2_tiny_window8_256",), ("swinv2_tiny_window16_256",)],
    [("vit_so400m_patch14_siglip_378", "vit_so400m_patch14_siglip_384")],
]


@pytest.mark.parametrize("groups", TWINS, ids=[g[0][0] for g in TWINS])
def test_twins_count_as_one_only_if_they_compute_the_same(groups: list[tuple[str, ...]]) -> None:
    assert sorted(names(shapes_of(groups[0][0], num_classes=7))) == sorted(groups)


@pytest.mark.parametrize(
    ("first", "second", "size"),
    [
        ("efficientnet_b0", "tf_efficientnet_b0", 64),
        ("resnet18", "resnetblur18", 64),
        ("nest_tiny", "nest_tiny_jx", 224),
    ],
)
def test_what_counts_as_different_is_different(first: str, second: str, size: int) -> None:
    """The slow check of the signature: the same tensors in both, and other logits."""
    torch.manual_seed(0)
    one, other = timm.create_model(first).eval(), timm.create_model(second).eval()
    for module in one.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)  # timm starts the last norm of a block at 0, which hides the rest
    other.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert not torch.equal(one(images), other(images))


def test_what_counts_as_the_same_is_the_same() -> None:
    torch.manual_seed(0)
    one, other = timm.create_model("vit_tiny_patch16_224").eval(), timm.create_model("deit_tiny_patch16_224").eval()
    other.load_state_dict(one.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


def test_every_setting_of_a_module_counts_but_those_of_training() -> None:
    base = signature(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.ReLU()))

    def variant(**changes: nn.Module) -> str:
        parts: dict[str, nn.Module] = {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "drop": nn.Dropout(0.1),
            "act": nn.ReLU(),
        }
        return signature(nn.Sequential(*{**parts, **changes}.values()))

    assert variant() == base
    assert variant(drop=nn.Dropout(0.9)) == variant(drop=nn.Identity()) == base
    assert variant(norm=nn.BatchNorm2d(4, momentum=0.5)) == base
    assert variant(conv=nn.Conv2d(3, 4, 3, padding=1)) != base
    assert variant(norm=nn.BatchNorm2d(4, eps=1e-3)) != base
    assert variant(act=nn.GELU()) != base


def test_functions_and_tied_tensors_count() -> None:
    class Net(nn.Module):
        def __init__(self, pool: Any) -> None:
            super().__init__()
            self.pool = pool
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    assert signature(Net(torch.amax)) == signature(Net(torch.amax)) != signature(Net(torch.amin))
    tied = Net(torch.amax)
    tied.b.weight = tied.a.weight
    assert signature(tied) != signature(Net(torch.amax))
    assert all("0x" not in line for line in description(tied))  # no addresses: two builds must agree


@pytest.mark.parametrize("change", ["drop", "add", "reshape", "rename"])
def test_one_tensor_off_is_no_match(change: str) -> None:
    tensors = shapes_of("test_resnet")
    victim = "layer1.0.conv1.weight"
    tensor = tensors.pop(victim)
    if change == "add":
        tensors |= {victim: tensor, "extra": tensor}
    elif change == "reshape":
        tensors[victim] = tensor.flatten(1)
    elif change == "rename":
        tensors[victim + "s"] = tensor
    assert identify(tensors) == []


def test_a_network_without_classifier_is_refused_by_name() -> None:
    with pytest.raises(ModelRejected, match="test_resnet without a classifier"):
        identify(shapes_of("test_resnet", num_classes=0))


def test_the_shipped_index_is_that_of_the_installed_libraries() -> None:
    entries = {e.architecture: e for e in index.load_index()}
    assert set(entries) == {*timm.list_models(), *vision.names()}
    assert entries["test_vit"] == index.describe("test_vit")
    path = Path(index.__file__).with_name(index.SHIPPED)
    assert path.stat().st_size < 40_000


def test_the_index_survives_its_file() -> None:
    entries = index.build_index(["test_resnet", "test_vit", "test_maxvit"])
    assert index.unpacked(index.packed(entries)) == {"timm": entries}


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", gzip.compress(b"[]"), gzip.compress(b'{"format": 0}'), gzip.compress(b"{}")[:-4]],
    ids=["empty", "junk", "a list", "another format", "cut short"],  # compressed bytes hold the time: no names
)
def test_a_damaged_index_is_built_again(data: bytes) -> None:
    assert index.unpacked(data) == {}


def test_another_timm_gets_its_own_index_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timm, "__version__", "99.0")
    monkeypatch.setattr(timm, "list_models", lambda: ["test_resnet"])
    monkeypatch.setattr(index.platformdirs, "user_cache_dir", lambda _: str(tmp_path))
    told: list[tuple[int, int, str]] = []
    first = index.load_index(lambda *progress: told.append(progress))
    assert told == [(1, 1, "test_resnet")]
    assert set(index.load_index(lambda *progress: told.append(progress))) == set(first)
    assert len(told) == 1
    assert [p.name for p in tmp_path.iterdir()] == [f"timm_index-{index.FORMAT}-99.0-{vision.version()}.json.gz"]


def test_settings_that_no_module_shows_make_variants_that_stay_candidates() -> None:
    """Two window sizes, the same modules and tensors, other logits: one network to look at, two to choose from."""
    tensors = build("swinv2_tiny_window8_256", {"num_classes": 7}, device="meta").state_dict()
    found = identify(tensors)
    assert {c.architecture for c in found} == {"swinv2_tiny_window8_256", "swinv2_tiny_window16_256"}
    assert len({c.printed for c in found}) == 1
    twins = identify(build("resnet18", {"num_classes": 7}, device="meta").state_dict())
    assert len(twins) > 1
    assert len({c.printed for c in twins}) == len(twins)
