"""An image folder: one sub-folder per class, the images inside it; numbered as a loader does, where one is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

import numpy as np

from memaudit.data.classes import Classes, in_order
from memaudit.data.compact import Files, Rows, Texts
from memaudit.data.images import RowError
from memaudit.data.images.decoding import SUFFIXES
from memaudit.data.listing import FileListing
from memaudit.data.numbering import in_turn, natural_key, numbered
from memaudit.data.paths import display, regular
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected
from memaudit.text import clean

# Images all the same: ignoring them would shrink the audit silently, so they are listed and come out unreadable.
_OTHER_IMAGES = frozenset({".gif", ".avif", ".heic", ".jp2", ".tga", ".ico", ".svg", ".jxl"})


# What to say where images lie deeper than one folder.
NESTED = "--row-order torchvision takes the outer folder for the class, --row-order timm the inner one, as they do"


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


def class_names(root: Path, class_order: str, row_order: str | None = None) -> tuple[str, ...]:
    """The classes of `root` by label; for timm those folders that hold images themselves, at whatever depth.

    Raises:
        DataRejected: as `class_folders`.
    """
    folders = class_folders(root)
    if row_order == "timm":
        rejections = Rejections(display(root), "entries")
        names = [name for folder in folders for name in _listed(root, folder, row_order, rejections)]
        rejections.check(len(folders))
        folders = list(dict.fromkeys(_class_of(name, row_order) for name in names)) or folders
    return Classes.of(in_order(folders, class_order), None).names


def list_folder(root: Path, classes: Classes, class_order: str, row_order: str | None = None) -> FileListing:
    """Every image of `root`, class by class in label order, naturally sorted within; or as `row_order` numbers them.

    Args:
        classes: declared names, looked up by folder name; without them the folders themselves are the classes.
        class_order: `natural`, `lexical` or a file, used only when no names are declared.
        row_order: `torchvision` or `timm`: its numbers, the files that it lists, and of nested folders the one that it
            takes for the class (the outermost, the innermost).

    Raises:
        DataRejected: a folder is no class, entries are not what they should be, or there is no image.
    """
    folders = class_folders(root)
    if not classes.names:
        classes = Classes.of(class_names(root, class_order, row_order), classes.count)
    rejections = Rejections(display(root), "entries")
    unusual: set[str] = set()
    groups: list[tuple[int, list[str]]] = []
    for folder in folders:
        found = _listed(root, folder, row_order, rejections, unusual)
        for owner, names in _by_class(folder, found, row_order):
            try:
                groups.append((classes.named(owner), names))
            except RowError as reason:
                rejections.add(clean(owner), reason)
    unknown = "name the model's classes, one per line in label order: --class-order FILE"
    rejections.check(max(len(folders), len(rejections.reasons)), hint=NESTED if _nested(rejections) else unknown)
    rows = _rows(sorted(groups, key=lambda group: group[0]) if row_order is None else in_turn(groups, row_order))
    del groups
    paths = Texts(_paths(root, rows.names, unusual, rejections))
    rejections.check(max(len(rows), len(rejections.reasons)))
    if not rows:
        suffixes = ", ".join(SUFFIXES)
        raise DataRejected(
            f"{display(root)} holds no image in its {len(folders)} class folders", hint=f"known: {suffixes}"
        )
    files = Files(Path(os.path.realpath(root)), rows.names if paths.same(rows.names) else paths)
    return FileListing(display(root), rows, classes.names, files, root=root, row_order=row_order)


def _rows(groups: Sequence[tuple[int, list[str]]]) -> Rows:
    """The rows of names under their labels."""
    labels = np.repeat(np.array([label for label, _ in groups], np.int32), [len(own) for _, own in groups])
    return Rows.named(Texts(name for _, own in groups for name in own), labels)


def _by_class(folder: str, names: list[str], row_order: str | None) -> Iterator[tuple[str, list[str]]]:
    """The class folders at and below `folder`, and which of `names` are theirs; an empty one is a class but to timm."""
    if row_order != "timm":
        yield folder, names
        return
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(_class_of(name, row_order), []).append(name)
    yield from owners.items()


def _paths(root: Path, names: Iterable[str], unusual: Set[str], rejections: Rejections) -> Iterator[str]:
    """Where the files are, below the resolved `root`, or elsewhere."""
    home = Path(os.path.realpath(root))
    folders: dict[str, str] = {}  # resolved: for each of a million files it took two thirds of the time
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.relpath(os.path.realpath(root / folder), home)
        path = f"{folders[folder]}/{file}"
        try:
            if name in unusual or not os.access(f"{home}/{path}", os.R_OK):
                real = regular(home, home / path, name, linked=True, resolved=True)
                path = str(real.relative_to(home) if real.is_relative_to(home) else real)
            yield path
        except RowError as reason:
            rejections.add(clean(name), reason)


def _listed(
    root: Path, folder: str, row_order: str | None, rejections: Rejections, unusual: set[str] | None = None
) -> list[str]:
    """Names of the images in `folder` that the loader lists, as it orders them; without one, of all, naturally sorted.

    Args:
        unusual: takes the names of entries that are no plain files.
    """
    names = _images(root, folder, row_order, rejections, set() if unusual is None else unusual)
    if row_order is None:
        return sorted(names, key=lambda name: natural_key(name[len(folder) :]))
    return [names[i] for i in numbered(names, row_order)]


def _class_of(name: str, row_order: str | None) -> str:
    """The folder of `name` that is its class."""
    folders = name.split("/")[:-1]
    return folders[-1] if row_order == "timm" else folders[0]


def _nested(rejections: Rejections) -> bool:
    return any("nested folder" in reason for reason in rejections.reasons)


def _images(root: Path, folder: str, row_order: str | None, rejections: Rejections, unusual: set[str]) -> list[str]:
    """Names of the images in `folder`, of the arrays where there is no image.

    Nested ones too where `row_order` says whose class they are; else they are ambiguous, so they are rejected.
    """
    names, arrays = [], []
    for entry in _entries(root / folder):
        where = f"{folder}/{entry.name}"
        plain = entry.is_file(follow_symlinks=False)
        if not plain and os.path.isdir(entry.path):  # not entry.is_dir(), which raises for a link to itself
            linked_back = entry.is_symlink()  # to a folder of its own, counted there; one that leaves is caught below
            inside = Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(root))
            if not inside:
                rejections.add(clean(where), "a symbolic link that leaves the folder; copy the images into it")
            elif entry.name.startswith("."):
                rejections.add(clean(where), "a dot-folder; move it out of the data")
            elif linked_back:
                continue
            elif row_order is not None:
                names += _images(root, where, row_order, rejections, unusual)
            elif _holds_images(Path(entry.path)):
                rejections.add(clean(where), "images in a nested folder: is the inner name the class, or the outer?")
            continue
        if _is_image(entry.name):
            names.append(where)
        elif entry.name.lower().endswith(".npy"):
            arrays.append(where)
        else:
            continue
        if not plain:
            unusual.add(where)
    return names or arrays  # arrays beside images are somebody's notes about them


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise DataRejected(f"{display(folder)} cannot be listed ({clean(error.strerror or error)})") from None


def _holds_images(folder: Path) -> bool:
    return any(_is_image(name) for _, _, files in os.walk(folder) for name in files)


def _is_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or suffix in _OTHER_IMAGES
