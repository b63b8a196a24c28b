"""Vision Transformers of timm's in sizes that no architecture has: which `--model-kwargs` their tensors take.

Patch, depth, width and the width of the MLP follow from shapes. The number of heads is in no tensor, so a network is
never built from this alone; it is offered to the user as options, proven by a network of these sizes without memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from memaudit.adapters.building import build

BASE = "vit_tiny_patch16_224"
# The width of a head in nearly every Vision Transformer (Dosovitskiy et al. 2021, table 1).
HEAD = 64
TELLING = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "head.weight")


def options_for(tensors: Mapping[str, Tensor]) -> str:
    """The options under which `BASE` has just these tensors; empty where it never does."""
    kwargs = _sizes(tensors)
    if not kwargs:
        return ""
    try:
        network = build(BASE, kwargs, device="meta", most=len(tensors) + 1)
    except Exception:  # whatever a constructor makes of sizes from a file
        return ""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if own != {name: tuple(value.shape) for name, value in tensors.items()}:
        return ""
    return " ".join([f"--arch {BASE}", *(f"--model-kwargs {k}={v}" for k, v in kwargs.items() if k != "num_classes")])


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = [tuple(tensors[name].shape) if name in tensors else () for name in TELLING]
    if [len(shape) for shape in shapes] != [4, 3, 2, 2]:
        return {}
    (width, channels, side, _), (_, tokens, _), (hidden, _), (classes, _) = shapes
    grid = isqrt(tokens)  # one more token, for the class, does not make it a square of more
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    ratio = hidden / max(1, width)
    return {
        "img_size": grid * side,
        "patch_size": side,
        "embed_dim": width,
        "depth": depth,
        "num_heads": max(1, width // HEAD),
        **({"mlp_ratio": ratio} if ratio != 4 else {}),
        **({"global_pool": "avg"} if "fc_norm.weight" in tensors else {}),
        **({"class_token": False} if "cls_token" not in tensors else {}),
        **({"init_values": 1e-5} if "blocks.0.ls1.gamma" in tensors else {}),
        **({"in_chans": channels} if channels != 3 else {}),
        "num_classes": classes,
    }
