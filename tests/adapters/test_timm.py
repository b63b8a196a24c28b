"""timm checkpoints become the network that wrote them, or an error that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from memaudit.adapters.base import ModelOptions
from memaudit.adapters.building import REFUSED, build
from memaudit.adapters.registry import choose
from memaudit.adapters.timm import TimmAdapter
from memaudit.checkpoints import read
from memaudit.errors import MemauditError, ModelRejected, UsageError


def network(architecture: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(architecture, **kwargs).eval()


def saved(folder: Path, module: nn.Module, config: dict[str, Any] | None = None) -> Path:
    """A Hugging Face style directory with `config`, or the bare file without one."""
    save_file(module.state_dict(), folder / "model.safetensors")
    if config is None:
        return folder / "model.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# how it was made, what the checkpoint says, what the user says -> input size, where preprocessing came from
LOADS: list[tuple[str, str, dict[str, Any], dict[str, Any] | None, dict[str, Any], tuple[int, ...], str]] = [
    ("bare file", "test_resnet", {"num_classes": 7}, None, {}, (3, 160, 160), "timm's training values"),
    ("config", "test_vit", {"num_classes": 7}, {"architecture": "test_vit"}, {}, (3, 160, 160), "timm's training"),
    ("named", "test_efficientnet_ln", {}, None, {"arch": "test_efficientnet_ln"}, (3, 160, 160), "timm's training"),
    ("grey", "test_resnet", {"in_chans": 1, "num_classes": 2}, None, {}, (1, 160, 160), "timm's training values"),
    ("five channels", "test_vit", {"in_chans": 5}, None, {"arch": "test_vit"}, (5, 160, 160), "timm's training"),
    ("larger images", "test_vit", {"img_size": 224, "num_classes": 7}, None, {}, (3, 224, 224), "tensors, timm's"),
    ("grid of offsets", "test_maxvit", {"img_size": 192}, None, {}, (3, 192, 192), "tensors, timm's"),
    ("told size", "test_resnet", {}, None, {"input_size": (3, 32, 32)}, (3, 32, 32), "flags, timm's"),
    ("told mean", "test_resnet", {}, None, {"mean": (0.1,) * 3, "std": (1.0,) * 3}, (3, 160, 160), "timm's"),
    (
        "arguments in the config",
        "test_vit",
        {"class_token": False, "global_pool": "avg", "img_size": 96},
        {"architecture": "test_vit", "model_args": {"class_token": False, "global_pool": "avg"}},
        {},
        (3, 96, 96),
        "tensors, timm's",
    ),
    (
        "preprocessing in the config",
        "test_resnet",
        {"num_classes": 7},
        {
            "architecture": "test_resnet",
            "num_classes": 7,
            "pretrained_cfg": {"input_size": [3, 64, 64], "crop_pct": 1.0},
        },
        {},
        (3, 64, 64),
        "checkpoint, timm's",
    ),
    (
        "windows from the config's size",
        "test_vit_relpos",
        {"img_size": 96},
        {"architecture": "test_vit_relpos", "pretrained_cfg": {"input_size": [3, 96, 96]}},
        {},
        (3, 96, 96),
        "checkpoint, timm's",
    ),
]


@pytest.mark.parametrize(
    ("architecture", "kwargs", "config", "options", "size", "origin"), [c[1:] for c in LOADS], ids=[c[0] for c in LOADS]
)
def test_the_loaded_network_computes_what_the_saved_one_did(
    tmp_path: Path,
    architecture: str,
    kwargs: dict[str, Any],
    config: dict[str, Any] | None,
    options: dict[str, Any],
    size: tuple[int, ...],
    origin: str,
) -> None:
    original = network(architecture, **kwargs)
    adapter = choose(read(saved(tmp_path, original, config)), ModelOptions(**options))
    assert adapter.architecture == architecture
    assert adapter.preprocess.input_size == size
    assert origin in adapter.preprocess.origin
    assert not any(m.training for m in adapter.module.modules())
    assert not any(p.requires_grad for p in adapter.module.parameters())
    images = torch.rand(2, *size)
    with torch.no_grad():
        assert torch.equal(adapter.forward(images), original(adapter.preprocess.normalise(images)))


def test_training_preprocessing_is_taken() -> None:
    """resnet18.a1_in1k: trained at 224 / 0.95, tested at 288 / 1.0."""
    from memaudit.adapters.building import default_config
    from memaudit.adapters.preprocessing import resolve

    preprocess = resolve(ModelOptions(), {}, default_config("resnet18"), "timm")
    assert (preprocess.input_size, preprocess.crop_pct) == ((3, 224, 224), 0.95)


# how it was made, what the checkpoint says, what the user says -> error
FAILS: list[tuple[str, str, dict[str, Any], dict[str, Any] | None, dict[str, Any], type[MemauditError], str]] = [
    ("no such name", "test_vit", {}, None, {"arch": "test_vitt"}, UsageError, "closest: 'test_vit'"),
    ("a path for a name", "test_vit", {}, None, {"arch": "hf-hub:evil/x"}, UsageError, "no architecture"),
    ("another name", "test_vit", {}, None, {"arch": "test_vit2"}, ModelRejected, "43 missing"),
    ("config lies", "test_vit", {}, {"architecture": "test_resnet"}, {}, ModelRejected, "is not test_resnet"),
    ("classes differ", "test_vit", {"num_classes": 10}, None, {"num_classes": 7}, ModelRejected, "has 10 classes"),
    (
        "config's classes differ",
        "test_vit",
        {"num_classes": 10},
        {"architecture": "test_vit", "num_classes": 7},
        {},
        ModelRejected,
        "the checkpoint says 7",
    ),
    ("no head", "test_vit", {"num_classes": 0}, None, {}, ModelRejected, "without a classifier"),
    (
        "no head, named",
        "test_vit",
        {"num_classes": 0},
        None,
        {"arch": "test_vit"},
        ModelRejected,
        "without a classifier",
    ),
    (
        "unknown",
        "test_vit",
        {"class_token": False, "global_pool": "avg"},
        None,
        {},
        ModelRejected,
        "no architecture of timm",
    ),
    ("wrong size", "test_vit", {}, None, {"input_size": (3, 224, 224)}, UsageError, "not trained on images of 224"),
    ("wrong channels", "test_resnet", {}, None, {"input_size": (1, 64, 64)}, UsageError, "1 channels, the network 3"),
    ("mean of two", "test_resnet", {}, None, {"mean": (0.1, 0.1)}, UsageError, "mean has 2 values"),
    ("std of 0", "test_resnet", {}, None, {"std": (0.0, 1.0, 1.0)}, UsageError, "must be positive"),
    (
        "argument timm does not know",
        "test_resnet",
        {},
        None,
        {"arch": "test_resnet", "model_kwargs": {"colour": "red"}},
        UsageError,
        "cannot build",
    ),
    (
        "a network without end",
        "test_vit",
        {},
        {"architecture": "test_vit", "model_args": {"depth": 16_000}},
        {},
        ModelRejected,
        "larger than the checkpoint",
    ),
    (
        "a network far too wide",
        "test_vit",
        {},
        {"architecture": "test_vit", "model_args": {"embed_dim": 1 << 14}},
        {},
        ModelRejected,
        "other shapes",
    ),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("architecture", "kwargs", "config", "options", "error", "match"), [c[1:] for c in FAILS], ids=[c[0] for c in FAILS]
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    architecture: str,
    kwargs: dict[str, Any],
    config: dict[str, Any] | None,
    options: dict[str, Any],
    error: type[MemauditError],
    match: str,
) -> None:
    path = saved(tmp_path, network(architecture, **kwargs), config)
    with pytest.raises(error, match=match) as caught:
        choose(read(path), ModelOptions(**options))
    assert caught.value.hint


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_would_fetch_weights_are_never_passed_on(name: str) -> None:
    with pytest.raises(TypeError, match="cannot be set"):
        build("test_resnet", {name: True}, device="meta")


def test_twins_that_compute_differently_are_offered(tmp_path: Path) -> None:
    original = network("test_efficientnet_ln")
    checkpoint = read(saved(tmp_path, original))
    first = choose(checkpoint, ModelOptions())
    assert first.alternatives == ("test_efficientnet_gn", "test_efficientnet_ln")
    images = torch.rand(2, 3, 160, 160)
    same = []
    for name in first.alternatives:
        adapter = choose(checkpoint, ModelOptions(arch=name))
        assert adapter.alternatives == (name,)
        with torch.no_grad():
            same.append(torch.equal(adapter.forward(images), original(adapter.preprocess.normalise(images))))
    assert same == [False, True]


def test_networks_that_differ_in_what_no_module_shows_are_variants(tmp_path: Path) -> None:
    path = saved(tmp_path, network("swinv2_tiny_window16_256", num_classes=7))
    variants = choose(read(path), ModelOptions())
    assert variants.variants
    assert set(variants.alternatives) == {"swinv2_tiny_window8_256", "swinv2_tiny_window16_256"}
    said = choose(read(path), ModelOptions(arch="swinv2_tiny_window16_256"))
    assert (said.architecture, said.variants) == ("swinv2_tiny_window16_256", False)
    twins = choose(read(saved(tmp_path, network("resnet18", num_classes=7))), ModelOptions())
    assert len(twins.alternatives) == 2
    assert not twins.variants


def test_equal_networks_for_other_means_are_one_but_named_unless_the_mean_is_said(tmp_path: Path) -> None:
    original = network("deit_tiny_patch16_224", num_classes=3)
    checkpoint = read(saved(tmp_path, original))
    adapter = choose(checkpoint, ModelOptions())
    assert isinstance(adapter, TimmAdapter)
    assert adapter.alternatives == ("vit_tiny_patch16_224",)
    assert [p.mean[0] for p in adapter.presets] == [0.5, 0.485]
    assert "known with timm's training values for deit_tiny_patch16_224" in adapter.preprocess.origin
    said = choose(checkpoint, ModelOptions(mean=(0.5,) * 3, std=(0.5,) * 3))
    assert len(said.presets) == 1


def test_a_transformers_directory_asks_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memaudit.adapters.registry.COMPANION", ("transformers", "not-installed"))
    path = saved(tmp_path, nn.Linear(2, 2), {"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    with pytest.raises(ModelRejected, match="is a transformers model") as caught:
        choose(read(path), ModelOptions())
    assert "--adapter" in caught.value.hint


def test_timm_inside_a_transformers_wrapper_is_timm(tmp_path: Path) -> None:
    original = network("test_resnet", num_classes=7)
    save_file({f"timm_model.{n}": t for n, t in original.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "model_type": "timm_wrapper"}')
    adapter = choose(read(tmp_path), ModelOptions())
    assert adapter.architecture == "test_resnet"
