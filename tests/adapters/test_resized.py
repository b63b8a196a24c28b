"""A Vision Transformer of the user's own sizes: the options that its tensors take."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from memaudit.adapters.building import build
from memaudit.adapters.resized import BASE, options_for
from memaudit.cli.values import pair

OWN: list[dict[str, Any]] = [
    {"img_size": 32, "patch_size": 4, "depth": 2},
    {"img_size": 64, "patch_size": 16, "depth": 3, "embed_dim": 96, "num_heads": 3, "mlp_ratio": 2.0},
    {"img_size": 32, "patch_size": 8, "depth": 1, "in_chans": 1, "global_pool": "avg"},
    {"img_size": 32, "patch_size": 8, "depth": 1, "class_token": False, "global_pool": "avg", "init_values": 1e-5},
]


@pytest.mark.parametrize("kwargs", OWN, ids=str)
def test_the_network_built_as_advised_has_the_tensors(kwargs: dict[str, Any]) -> None:
    tensors = timm.create_model("vit_base_patch16_224", num_classes=7, **({"embed_dim": 192} | kwargs)).state_dict()
    words = options_for(tensors).split("--model-kwargs ")[1:]
    found = dict(pair(word.split()[0]) for word in words)
    network = build(BASE, {**found, "num_classes": 7}, device="meta")
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in tensors.items()}


def test_other_networks_get_no_such_advice() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, depth=1).state_dict()
    assert not options_for(timm.create_model("test_resnet", num_classes=3).state_dict())
    assert not options_for({n: t for n, t in vit.items() if "norm" not in n})
    assert not options_for({**vit, "pos_embed": torch.zeros(3)})
    assert not options_for({**vit, "blocks.0.mlp.fc1.weight": torch.zeros(5, 0)})
