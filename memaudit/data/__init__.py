"""Labelled images from wherever they are: folder, manifest, arrays, lists of rows, tensors, datasets.

Public names are loaded when they are first used: the processes that decode images import `memaudit.data.images` and
must start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memaudit.data.arrays import from_arrays
    from memaudit.data.datasets import from_dataset
    from memaudit.data.decode import Progress
    from memaudit.data.examples import ExampleSet, content_id, finding_id, joined
    from memaudit.data.images.preprocess import Preprocess
    from memaudit.data.members import Arrays
    from memaudit.data.several import paired_names
    from memaudit.data.sources import class_names_of, described, names_noted, names_used, read, remove_overlap
    from memaudit.data.tensors import from_tensors
    from memaudit.data.thumbs import thumbnails

__all__ = [
    "Arrays",
    "ExampleSet",
    "Preprocess",
    "Progress",
    "class_names_of",
    "content_id",
    "described",
    "finding_id",
    "from_arrays",
    "from_dataset",
    "from_tensors",
    "joined",
    "names_noted",
    "names_used",
    "paired_names",
    "read",
    "remove_overlap",
    "thumbnails",
]

_HOMES = {
    "Arrays": "members",
    "ExampleSet": "examples",
    "Preprocess": "images.preprocess",
    "Progress": "decode",
    "class_names_of": "sources",
    "content_id": "examples",
    "described": "sources",
    "finding_id": "examples",
    "from_arrays": "arrays",
    "from_dataset": "datasets",
    "from_tensors": "tensors",
    "joined": "examples",
    "names_noted": "sources",
    "names_used": "sources",
    "paired_names": "several",
    "read": "sources",
    "remove_overlap": "sources",
    "thumbnails": "thumbs",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"memaudit.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'memaudit.data' has no attribute {name!r}")
