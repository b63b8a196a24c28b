"""The number of a row: torchvision's `ImageFolder` and timm's reader list one folder in two orders.

Whoever saved indices, a mask or a table counted the rows of a loader. Both are followed to the letter: which files they
list, and in which order (torchvision 0.29, `datasets/folder.py`; timm 1.0, `data/readers/reader_image_folder.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

ORDERS = ("torchvision", "timm")
# What each of them takes for an image, by the end of its name; any other file has no number there.
_LISTED = {
    "torchvision": (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    "timm": (".png", ".jpg", ".jpeg"),
}


def numbered(names: Sequence[str], order: str) -> list[int]:
    """Positions in `names` of the files that the loader lists, in the order it numbers them from 0.

    Args:
        names: paths relative to the image folder, with `/`.
        order: of `ORDERS`.
    """
    key = _torchvision_key if order == "torchvision" else _timm_key
    found = [i for i, name in enumerate(names) if _is_listed(name, order)]
    return sorted(found, key=lambda i: (key(names[i]), names[i]))


def in_turn(groups: Sequence[tuple[int, list[str]]], order: str) -> list[tuple[int, list[str]]]:
    """Names of the files that the loader lists, each group under its label, in the order it numbers them from 0.

    Args:
        groups: each in the loader's order. Few have to be taken apart: a loader goes through folder by folder.
    """
    key = _torchvision_key if order == "torchvision" else _timm_key
    ends = sorted(
        (((key(names[0]), names[0]), (key(names[-1]), names[-1]), n) for n, (_, names) in enumerate(groups) if names)
    )
    if all(one[1] < other[0] for one, other in pairwise(ends)):
        return [groups[number] for *_, number in ends]
    names = [name for _, own in groups for name in own]
    labels = [label for label, own in groups for _ in own]
    return [(labels[place], [names[place]]) for place in numbered(names, order)]


def undecided(names: Sequence[str], order: str) -> frozenset[str]:
    """Names that share their sort key with another (`img1.png`, `img01.png`): the file system orders them in timm."""
    if order != "timm":
        return frozenset()
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        if _is_listed(name, order):
            groups.setdefault(_timm_key(name), []).append(name)
    return frozenset(name for group in groups.values() if len(group) > 1 for name in group)


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sorts `img2` before `img10`, case folded, as timm orders class folders; equal names by their characters."""
    return list(_timm_key(name)), name


def _is_listed(name: str, order: str) -> bool:
    if order == "torchvision":  # the end of the whole name: also of a file that is called `.png`
        return name.lower().endswith(_LISTED[order])
    return os.path.splitext(name)[1].lower() in _LISTED[order]


def _torchvision_key(name: str) -> tuple[str, str, str]:
    """Class by class, within a class folder by folder, as text."""
    folder, _, file = name.rpartition("/")
    return folder.partition("/")[0], folder, file


def _timm_key(name: str) -> tuple[int | str, ...]:
    parts = re.split(r"(\d+)", name.lower())
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts))
