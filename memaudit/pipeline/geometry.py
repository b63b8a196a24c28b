"""How images come to the network's size, where nobody says: crop, squash and filter, tried on the examples.

No file of weights says it, and a network that learned labels by heart knows the very pixels: with another crop it gave
9 of 12 of them in place of 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from memaudit.adapters.base import Adapter
from memaudit.adapters.preprocessing import guessed
from memaudit.data import ExampleSet, Preprocess
from memaudit.findings import ReportWarning
from memaudit.pipeline.load import PRESET_IMAGES, Settled, better
from memaudit.pipeline.trials import Tried, attempt

Read = Callable[[Adapter, int | None], ExampleSet]
_FIELDS = ("crop_pct", "crop_mode", "interpolation")
# What training scripts do: timm's and torchvision's crops, and `Resize((H, W))`.
_CROPS = (("center", 0.875), ("center", 1.0), ("squash", 1.0))
_FILTERS = ("bilinear", "bicubic")


def settle_geometry(settled: Settled, read: Read, flagged: Read, device: str) -> Settled:
    """The way to the network's size that clearly fits the examples, or a word that it is a guess.

    Args:
        read: the reference for an adapter, or at most so many of it; `flagged` likewise: a network gives labels that it
            learned by heart to the pixels that it learned them from.
    """
    adapter, base = settled.adapter, settled.adapter.preprocess
    unsaid = [field for field in guessed(base) if field in _FIELDS]
    if not unsaid or not settled.reference.seen.get("resized") or adapter.multi_label:
        return settled

    def seen(way: Preprocess) -> Tried:
        adapter.preprocess = way
        return attempt(adapter, [source(adapter, PRESET_IMAGES) for source in (read, flagged)], device, PRESET_IMAGES)

    own = seen(base)
    tried = [] if bool(own.right.all()) else [seen(way) for way in _ways(base, unsaid)]
    adapter.preprocess = base
    rivals = [t for t in tried if len(t.right) == len(own.right) and not better(own.right, t.right)]
    if not rivals:
        return settled
    shown = f"reference accuracy with {'; '.join(f'{_name(t.way)} {t}' for t in (own, *rivals))}"
    best = max(rivals, key=lambda t: (t.beats(own), t.share))
    if best.beats(own):
        # Filters differ by less than a test can tell: of those that fit alike, the one with the likeliest labels.
        alike = [t for t in rivals if not better(best.right, t.right)]
        adapter.preprocess = min(alike, key=lambda t: t.loss).way
        settled = replace(settled, reference=read(adapter, None))
        said = f"images come to the network's size by {_name(adapter.preprocess)}, which fits the examples best"
        code = "MEM914"
    else:
        said, code = "how images come to the network's size is a guess that the examples do not settle", "MEM910"
    said = f"{said} ({shown}); --crop-mode, --crop-pct and --interpolation say it"
    return replace(settled, warnings=(*settled.warnings, ReportWarning(code=code, message=said)))


def _ways(base: Preprocess, unsaid: list[str]) -> Iterator[Preprocess]:
    found = dict.fromkeys([base])
    for mode, share in _CROPS:
        for name in _FILTERS:
            values = {"crop_mode": mode, "crop_pct": share, "interpolation": name}
            way = replace(base, **{field: values[field] for field in unsaid})  # type: ignore[arg-type]
            if way not in found:
                found[way] = None
                yield way


def _name(way: Preprocess) -> str:
    return f"{'squash' if way.crop_mode == 'squash' else f'{way.crop_mode} crop'} {way.crop_pct:g} {way.interpolation}"
