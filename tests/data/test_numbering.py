"""Which number a row has: as the two loaders number it, and asked where they differ and nobody says."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from memaudit.data import read
from memaudit.data.numbering import ORDERS, in_turn, numbered, undecided
from memaudit.errors import DataRejected, UsageError
from tests.data.test_read import SMALL, write

STEMS = st.text("ab1029_ -.Äé", min_size=1, max_size=5)
SUFFIXES = st.sampled_from(
    [".png", ".PNG", ".jpg", ".Jpeg", ".bmp", ".tif", ".webp", ".ppm", ".gif", ".txt", ".png.bak"]
)


def theirs(root: Path, order: str) -> list[str]:
    """The files of `root` as the library itself lists them."""
    samples = (
        ImageFolder(str(root)).samples if order == "torchvision" else create_dataset("", root=str(root)).reader.samples
    )
    return [os.path.relpath(path, root) for path, _ in samples]


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        STEMS.map(str.strip).filter(lambda s: s.strip(". ")),
        st.lists(st.tuples(STEMS, SUFFIXES), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
    )
)
def test_rows_are_numbered_as_the_loader_does(order: str, folders: dict[str, list[tuple[str, str]]]) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        names = {f"{folder}/{stem}{suffix}" for folder, files in folders.items() for stem, suffix in files}
        names |= {f"{folder}/x.png" for folder in folders}
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).touch()
        listed = sorted(names)
        ours = [listed[i] for i in numbered(listed, order)]
        apart = [[name for name in ours if name.startswith(f"{folder}/")] for folder in folders]
        assert [name for _, names in in_turn(list(enumerate(apart)), order) for name in names] == ours
        loose = undecided(listed, order)
        expected = theirs(root, order)
        assert sorted(ours) == sorted(expected)
        assert [n for n in ours if n not in loose] == [n for n in expected if n not in loose]
    finally:
        shutil.rmtree(root)


def folder(root: Path, names: Sequence[str]) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(write(root.parent / "seed.png", seed)).save(path)
    return root


PLAIN = [f"{c}/img{n}.png" for c in ("cat", "dog") for n in range(1, 13)]


@pytest.mark.parametrize("order", ORDERS)
def test_indices_mean_the_files_of_the_named_loader(order: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "d", [*PLAIN, "cat/extra.bmp"])
    np.save(tmp_path / "r.npy", [4, 20])
    found = read(tmp_path / "r.npy", preprocess=SMALL, num_classes=2, data=root, row_order=order)
    expected = theirs(root, order)
    assert [(e.index, e.source) for e in found.examples] == [(i, expected[i]) for i in (4, 20)]
    assert found.row_order == order


def test_what_the_loaders_number_differently_is_asked_with_the_first_such_row(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", PLAIN)
    np.save(tmp_path / "r.npy", [0, 3])
    with pytest.raises(UsageError, match=r"3 is cat/img12\.png to torchvision's ImageFolder and cat/img4\.png to timm"):
        read(tmp_path / "r.npy", preprocess=SMALL, num_classes=2, data=root)


def test_rows_that_both_loaders_number_alike_need_no_word(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", PLAIN)
    np.save(tmp_path / "r.npy", [0])
    assert read(tmp_path / "r.npy", preprocess=SMALL, num_classes=2, data=root).row_order == "either"
    (tmp_path / "r.txt").write_text("dog/img9.png\n")
    assert read(tmp_path / "r.txt", preprocess=SMALL, num_classes=2, data=root).row_order is None


def test_a_mask_that_one_loader_alone_can_have_written_is_its(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", [*PLAIN, "cat/extra.bmp"])
    mask = np.zeros(len(PLAIN), bool)
    mask[[5, 20]] = True
    np.save(tmp_path / "r.npy", mask)
    found = read(tmp_path / "r.npy", preprocess=SMALL, num_classes=2, data=root)
    assert (found.row_order, [e.source for e in found.examples]) == ("timm", ["cat/img6.png", "dog/img9.png"])


def test_names_that_timm_leaves_to_the_file_system_are_no_row(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", ["cat/img1.png", "cat/img01.png", "dog/a.png"])
    np.save(tmp_path / "r.npy", [0])
    with pytest.raises(DataRejected, match="in an order that timm leaves to the file system; name the file instead"):
        read(tmp_path / "r.npy", preprocess=SMALL, num_classes=2, data=root, row_order="timm")


@pytest.mark.parametrize(("order", "names"), [("torchvision", ("cat", "dog")), ("timm", ("large", "small"))])
def test_nested_folders_belong_to_the_class_the_loader_says(order: str, names: tuple[str, ...], tmp_path: Path) -> None:
    files = ["cat/small/a.png", "cat/large/b.png", "dog/small/c.png"]
    root = folder(tmp_path / "d", files)
    found = read(root, preprocess=SMALL, num_classes=2, row_order=order)
    library = ImageFolder(str(root)) if order == "torchvision" else create_dataset("", root=str(root)).reader
    assert found.class_names == names == tuple(library.class_to_idx)
    assert [(e.source, e.label) for e in found.examples] == [(os.path.relpath(p, root), y) for p, y in library.samples]
    with pytest.raises(DataRejected) as caught:
        read(root, preprocess=SMALL, num_classes=2)
    assert "--row-order torchvision" in caught.value.hint
