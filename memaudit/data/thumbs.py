"""Small pictures of examples, for the HTML report."""

from __future__ import annotations

import io

import torch
from PIL import Image

from memaudit.data.examples import ExampleSet

SIDE = 64
# The worst examples are shown larger.
LARGE = 192
# Past this many pictures the page would grow past what a browser likes; the rest is shown without.
MOST = 1000


def thumbnails(examples: ExampleSet, side: int = SIDE) -> dict[str, bytes]:
    """PNG bytes by example id, none where examples are no images.

    The longer side has at most `side` pixels; small images are enlarged to it in whole steps.
    """
    pictures: dict[str, bytes] = {}
    if not examples.image:
        return pictures
    for row, example in enumerate(examples.examples[:MOST]):
        pixels = examples.pixels[row]
        if pixels.shape[0] not in (1, 3):
            continue
        if pixels.dtype != torch.uint8:
            low, high = float(pixels.min()), float(pixels.max())
            scaled = pixels if low >= 0 and high <= 1 else (pixels - low) / max(high - low, 1e-12)
            pixels = (scaled * 255).round().to(torch.uint8)
        array = pixels.movedim(0, -1).numpy()
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        longest = max(image.size)
        if longest > side:
            image.thumbnail((side, side))
        elif longest * 2 <= side:
            factor = side // longest
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        pictures[example.id] = buffer.getvalue()
    return pictures
