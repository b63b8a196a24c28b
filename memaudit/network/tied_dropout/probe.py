"""Images that a network takes, for following its forward pass where no data are at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memaudit.errors import UsageError
from memaudit.network.tied_dropout.modes import bypassed, evaluating
from memaudit.text import clean

# Image sizes that a network without a declared one is tried at.
PROBE_SIZES = (32, 64, 224, 28, 16, 8)


def probe_of(model: nn.Module, input_size: tuple[int, int, int] | None) -> Tensor:
    """Three random images `(3, channels, height, width)` that the network takes.

    Raises:
        UsageError: it takes none of the sizes that may be its own.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    sizes = [input_size] if input_size is not None else _sizes(model)
    generator = torch.Generator().manual_seed(0)
    reason = "no size is known"
    for size in sizes:
        images = torch.rand(3, *size, generator=generator).to(like.device, like.dtype)
        try:
            with evaluating(model), bypassed(model), torch.no_grad():
                model(images)
        except Exception as error:  # a network says "not my size" in its own words
            reason = f"{type(error).__name__}: {clean(error)}"
            continue
        return images
    raise UsageError(
        f"the network runs on none of the image sizes tried ({reason})",
        hint="Give it: input_size=(channels, height, width).",
    )


def _sizes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Sizes that may be the network's own: declared by it, then common ones."""
    sizes = []
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        declared = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if isinstance(declared, tuple | list) and len(declared) == 3:
            sizes.append((int(declared[0]), int(declared[1]), int(declared[2])))
    convolutions = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    channels = next(convolutions, sizes[0][0] if sizes else 3)
    return list(dict.fromkeys([*((channels, h, w) for _, h, w in sizes), *((channels, s, s) for s in PROBE_SIZES)]))
