"""An image folder: one sub-folder per class, the images directly inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from memaudit.data.classes import Classes, in_order, natural_key
from memaudit.data.images import RowError
from memaudit.data.images.decoding import SUFFIXES
from memaudit.data.listing import FileListing, Row
from memaudit.data.paths import display, regular
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected
from memaudit.text import clean

# Images all the same: ignoring them would shrink the audit silently, so they are listed and come out unreadable.
_OTHER_IMAGES = frozenset(
    {".gif", ".avif", ".heic", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".svg", ".jxl"}
)


def class_folders(root: Path) -> list[str]:
    """Names of the class folders of `root`, unsorted. A link back to `root` is a loop and no class.

    Raises:
        DataRejected: there are none, or an entry would shift the labels or leads outside.
    """
    rejections, images = Rejections(display(root), "entries"), 0
    folders: dict[Path, str] = {}
    real_root = Path(os.path.realpath(root))
    for entry in _entries(root):
        if not os.path.isdir(entry.path):
            images += _is_image(entry.name)
            if entry.is_symlink() and not os.path.exists(entry.path):
                rejections.add(clean(entry.name), "a symbolic link to nothing; if it was a class, labels would shift")
            continue
        real = Path(os.path.realpath(entry.path))
        if entry.name.startswith("."):
            rejections.add(clean(entry.name), "a dot-folder would become a class and shift every label; move it out")
        elif not real.is_relative_to(real_root):
            rejections.add(clean(entry.name), "a symbolic link that leaves the folder; copy the class into it")
        elif real == real_root:
            continue
        elif real in folders:
            rejections.add(
                clean(entry.name), f"the same folder as '{clean(folders[real])}'; one class cannot have two labels"
            )
        else:
            folders[real] = entry.name
    rejections.check(len(folders) + len(rejections.reasons))
    if images:
        raise DataRejected(
            f"{display(root)}: {images} images beside the class folders have no label",
            hint="put every image into its class's sub-folder, or write a manifest (.csv with path,label)",
        )
    if not folders:
        raise DataRejected(
            f"{display(root)} has no class sub-folders", hint="one folder per class, or a .csv with path,label"
        )
    return list(folders.values())


def list_folder(root: Path, classes: Classes, class_order: str) -> FileListing:
    """Every image of `root`, class by class in label order, naturally sorted within.

    Args:
        classes: declared names, looked up by folder name; without them the folders themselves are the classes.
        class_order: `natural`, `lexical` or a file, used only when no names are declared.

    Raises:
        DataRejected: a folder is no class, entries are not what they should be, or there is no image.
    """
    folders = class_folders(root)
    if not classes.names:
        classes = Classes.of(in_order(folders, class_order), classes.count)
    rejections = Rejections(display(root), "entries")
    labelled = []
    for folder in folders:
        try:
            labelled.append((classes.named(folder), folder))
        except RowError as reason:
            rejections.add(clean(folder), reason)
    rejections.check(len(folders), hint="name the model's classes, one per line in label order: --class-order FILE")
    real_root = Path(os.path.realpath(root))
    files = [(label, folder, name) for label, folder in sorted(labelled) for name in _images(root / folder, rejections)]
    rows: list[Row] = []
    resolved = []
    for label, folder, name in files:
        path = f"{folder}/{name}"
        try:
            resolved.append(regular(real_root, root / path, path))
            rows.append(Row(path, label, len(rows)))
        except RowError as reason:
            rejections.add(clean(path), reason)
    rejections.check(max(len(files), len(rejections.reasons)))
    if not rows:
        suffixes = ", ".join(SUFFIXES)
        raise DataRejected(
            f"{display(root)} holds no image in its {len(folders)} class folders", hint=f"known: {suffixes}"
        )
    return FileListing(display(root), tuple(rows), classes.names, tuple(resolved))


def _images(folder: Path, rejections: Rejections) -> Sequence[str]:
    """Names of the images directly in `folder`, of the arrays where there is no image.

    Sub-folders with images are ambiguous, so they are rejected.
    """
    names, arrays = [], []
    for entry in _entries(folder):
        if os.path.isdir(entry.path):  # not entry.is_dir(), which raises for a link to itself
            linked_back = entry.is_symlink()  # to a folder of its own, counted there; one that leaves is caught below
            inside = Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(folder.parent))
            where = clean(f"{folder.name}/{entry.name}")
            if not inside:
                rejections.add(where, "a symbolic link that leaves the folder; copy the images into it")
            elif entry.name.startswith("."):
                rejections.add(where, "a dot-folder; move it out of the data")
            elif not linked_back and _holds_images(Path(entry.path)):
                rejections.add(where, "images in a nested folder: is the inner name the class, or the outer?")
        elif _is_image(entry.name):
            names.append(entry.name)
        elif entry.name.lower().endswith(".npy"):
            arrays.append(entry.name)
    return sorted(names or arrays, key=natural_key)  # arrays beside images are somebody's notes about them


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: natural_key(e.name))
    except OSError as error:
        raise DataRejected(f"{display(folder)} cannot be listed ({clean(error.strerror or error)})") from None


def _holds_images(folder: Path) -> bool:
    return any(_is_image(name) for _, _, files in os.walk(folder) for name in files)


def _is_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or suffix in _OTHER_IMAGES
