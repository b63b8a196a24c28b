"""Image folders: which folders are classes, in which order, and what is refused because it would shift labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from memaudit.data import class_names_of, read
from memaudit.errors import DataRejected, ExitCode
from tests.data.test_read import SMALL, animals, safe, write

__all__ = ["animals"]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("natural", ("1", "2", "10", "B1", "b2", "b10")),
        ("lexical", ("1", "10", "2", "B1", "b10", "b2")),
    ],
)
def test_class_order_is_timms_or_torchvisions(order: str, names: tuple[str, ...], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        write(tmp_path / name / "x.png", seed)
    assert class_names_of(tmp_path, order) == names
    found = read(tmp_path, preprocess=SMALL, num_classes=6, class_order=order)
    assert [(e.source, e.label) for e in found.examples] == [(f"{n}/x.png", i) for i, n in enumerate(names)]


def test_natural_order_is_timms_own(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    for seed, name in enumerate(("n02", "n1", "N10", "a", "Z", "10x", "9x", "x-2", "x_11")):
        for image in ("10.png", "9.png", "b.jpeg"):
            path = write(tmp_path / name / image.replace(".jpeg", ".png"), seed * 7 + len(image))
            if image.endswith("jpeg"):
                path.rename(path.with_suffix(".tmp"))
    theirs, index = find_images_and_targets(str(tmp_path))
    ours = read(tmp_path, preprocess=SMALL, num_classes=9)
    assert {e.source: e.label for e in ours.examples} == {os.path.relpath(p, tmp_path): t for p, t in theirs}
    assert ours.class_names == tuple(index)


def outside(root: Path) -> Path:
    return write(root.parent / "outside/secret.png", 77)


Case = tuple[str, Callable[[Path], object], str]
REFUSED: list[Case] = [
    ("dot-folder", lambda r: write(r / ".git/x.png"), r"\.git: a dot-folder would become a class"),
    ("empty dot-folder", lambda r: (r / ".ipynb_checkpoints").mkdir(), "a dot-folder"),
    ("dot-folder in a class", lambda r: write(r / "cat/.cache/x.png"), r"cat/\.cache: a dot-folder"),
    (
        "class link out",
        lambda r: (r / "eel").symlink_to(outside(r).parent.resolve()),
        "eel: a symbolic link that leaves",
    ),
    ("class link up", lambda r: (r / "eel").symlink_to(r.resolve().parent), "eel: a symbolic link that leaves"),
    ("class link to nothing", lambda r: (r / "eel").symlink_to("gone"), "eel: a symbolic link to nothing"),
    (
        "folder link out",
        lambda r: (r / "cat/eel").symlink_to(outside(r).parent.resolve()),
        "cat/eel: a symbolic link that",
    ),
    ("dangling link", lambda r: (r / "cat/e.png").symlink_to("nowhere"), r"'cat/e\.png' is a link to nothing; fetch"),
    ("link to itself", lambda r: (r / "cat/e.png").symlink_to("e.png"), r"'cat/e\.png' cannot be reached"),
    ("class twice", lambda r: (r / "zebra").symlink_to("cat"), "the same folder as 'cat'"),
    ("nested class", lambda r: write(r / "cat/small/x.png"), "cat/small: images in a nested folder"),
    ("image without class", lambda r: write(r / "x.png"), "1 images beside the class folders have no label"),
    ("third class", lambda r: (r / "eel").mkdir(), "the data declares 3 classes, the model has 2"),
    ("fifo", lambda r: os.mkfifo(r / "cat/pipe.jpg"), r"'cat/pipe\.jpg' is not a regular file"),
    ("folder called like an image", lambda r: write(r / "cat/x.png/y.png"), r"cat/x\.png: images in a nested folder"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[c[0] for c in REFUSED])
def test_what_would_shift_labels_or_leave_the_folder_is_refused(
    name: str, change: Callable[[Path], object], message: str, animals: Path
) -> None:
    change(animals)
    with pytest.raises(DataRejected, match=message) as caught:
        read(animals, preprocess=SMALL, num_classes=2)
    assert caught.value.exit_code == ExitCode.REJECTED


def test_folders_without_images_or_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="has no class sub-folders"):
        read(tmp_path, preprocess=SMALL, num_classes=2)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataRejected, match="holds no image in its 2 class folders"):
        read(tmp_path, preprocess=SMALL, num_classes=2)
    write(tmp_path / "flat/x.png")
    with pytest.raises(DataRejected, match="1 images beside the class folders"):
        read(tmp_path / "flat", preprocess=SMALL, num_classes=2)


def test_loops_are_counted_once(animals: Path) -> None:
    (animals / "loop").symlink_to(".")
    (animals / "cat/up").symlink_to("..")
    (animals / "cat/other").symlink_to("../dog")
    (animals / "dog/self").symlink_to(".")
    assert len(read(animals, preprocess=SMALL, num_classes=2)) == 6


def test_links_inside_the_folder_serve(animals: Path) -> None:
    (animals / "dog/link.png").symlink_to("1.png")
    found = read(animals, preprocess=SMALL, num_classes=2)
    assert len(found) == 6
    assert found.duplicates == ("dog/link.png (row 6): same content as dog/1.png (row 3), left out",)


def test_images_that_are_links_to_a_cache_are_followed_and_counted(animals: Path) -> None:
    (animals / "cat/blob.png").symlink_to(outside(animals).resolve())
    found = read(animals, preprocess=SMALL, num_classes=2)
    assert (len(found), found.seen["linked"]) == (7, 1)


def test_an_empty_class_keeps_its_label(animals: Path) -> None:
    (animals / "cow").mkdir()
    assert read(animals, preprocess=SMALL, num_classes=3).labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_declared_names_place_a_subset_of_classes_and_refuse_strangers(animals: Path) -> None:
    names = ("ant", "cat", "cow", "dog")
    found = read(animals, preprocess=SMALL, num_classes=4, class_names=names)
    assert found.labels.tolist() == [1, 1, 1, 3, 3, 3]
    assert found.class_names == names
    (animals / "dog").rename(animals / "dgo")
    (animals / "cat").rename(animals / "3")
    with pytest.raises(DataRejected, match="2 of 2 entries rejected; 3: no class is called '3'") as caught:
        read(animals, preprocess=SMALL, num_classes=4, class_names=names)
    assert "no class is called 'dgo'; closest: 'dog'" in caught.value.details[1]
    assert "--class-order FILE" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["img[bold].png", "<script>alert(1)<_script>", "a\n::error::b", "\x1b[31m", "\u202egpj", "\x9b"],
)
def test_hostile_names_are_read_and_come_out_printable(name: str, animals: Path) -> None:
    write(animals / name / "x.png", 50)
    (animals / "cat" / f"{name}.png").write_bytes(write(Path("tmp.png"), 51).read_bytes())
    found = read(animals, preprocess=SMALL, num_classes=3)
    assert len(found) == 8
    for text in (*found.class_names, *(e.source for e in found.examples), found.source):
        assert safe(text)


def test_names_that_are_not_utf8_are_read_and_come_out_printable(animals: Path) -> None:
    folder = os.fsencode(animals) + b"/\xff\xfe"
    os.mkdir(folder)
    os.rename(write(Path("tmp.png"), 9), folder + b"/\xff.png")
    found = read(animals, preprocess=SMALL, num_classes=3)
    assert found.class_names[2] == "\\udcff\\udcfe"
    assert found.examples[-1].source == "\\udcff\\udcfe/\\udcff.png"
    found.examples[-1].model_dump_json()


def test_a_folder_may_be_reached_through_a_link(animals: Path) -> None:
    Path("alias").symlink_to(animals)
    assert len(read("alias", preprocess=SMALL, num_classes=2)) == 6
