"""Tables of images: parquet files and saved datasets, written by the libraries' own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from memaudit.data import ExampleSet, class_names_of, described, read
from memaudit.errors import DataRejected, EnvironmentFault
from tests.data.test_images import encoded
from tests.data.test_read import SMALL, picture, safe

COUNT, NAMES = 10, ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One dataset, in every way that datasets writes it."""
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("written")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    images = [picture(number, (8, 8)) for number in range(COUNT)]
    one = datasets.Dataset.from_dict({"image": images, "label": [n % 3 for n in range(COUNT)]}, features=features)
    one.save_to_disk(folder / "saved", num_shards=3)
    one.select(range(COUNT - 1, -1, -2)).save_to_disk(folder / "selected")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(folder / "splits")
    (folder / "tables").mkdir()
    for place in range(2):
        path = folder / "tables" / f"train-{place:05d}-of-00002.parquet"
        one.shard(2, place, contiguous=True).to_parquet(path, batch_size=2)
    return folder


def truth() -> list[tuple[int, np.ndarray]]:
    return [(number % 3, np.asarray(picture(number, (8, 8)))) for number in range(COUNT)]


@pytest.mark.parametrize("form", ["saved", "tables"])
def test_rows_are_those_of_the_dataset(form: str, written: Path) -> None:
    found = read(written / form, preprocess=SMALL, num_classes=3)
    assert len(found) == COUNT
    for example, pixels, (label, image) in zip(found.examples, found.pixels, truth(), strict=True):
        assert example.label == label
        assert np.array_equal(pixels.numpy().transpose(1, 2, 0), image)
    assert found.class_names == class_names_of(written / form) == NAMES
    assert [e.source for e in found.examples] == [f"row {n}" for n in range(COUNT)]
    assert not found.seen  # no name, so no misnamed file
    assert described(written / form) is None


def test_a_selection_is_saved_as_it_reads(written: Path) -> None:
    found = read(written / "selected", preprocess=SMALL, num_classes=3)
    for pixels, place in zip(found.pixels, range(COUNT - 1, -1, -2), strict=True):
        assert np.array_equal(pixels.numpy().transpose(1, 2, 0), np.asarray(picture(place, (8, 8))))


@pytest.mark.parametrize("form", ["saved", "tables"])
def test_labels_go_by_name_and_images_are_read_again(
    form: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = read(written / form, preprocess=SMALL, num_classes=4, class_names=("emu", "dog", "cat", "fox"))
    assert turned.labels.tolist() == [2 - label for label, _ in truth()]
    own = shutil.copytree(written / form, tmp_path / "own")
    whole = read(own, preprocess=SMALL, num_classes=3)
    monkeypatch.setattr("memaudit.data.ondemand.KEPT", 1)
    monkeypatch.setattr("memaudit.data.spill.SPILLED", 0)
    large: ExampleSet = read(own, preprocess=SMALL, num_classes=3)
    there = cloudpickle.loads(cloudpickle.dumps(large))
    assert there.sha256 == whole.sha256
    for rows in ([0, 5, 9, 1], [3]):
        assert np.array_equal(there.batch(rows), whole.batch(rows))
    for file in own.glob("*.arrow" if form == "saved" else "*.parquet"):
        file.write_bytes(bytes(100))
    with pytest.raises(DataRejected, match=r"row 0 changed while it was audited"):
        large.batch([0])


def test_rows_are_listed_by_number(written: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("7\n0\n", encoding="utf-8")
    picked = read(listed, data=written / "tables", preprocess=SMALL, num_classes=3)
    assert [(e.index, e.label) for e in picked.examples] == [(7, 1), (0, 0)]


def images(count: int) -> list[bytes]:
    return [encoded(picture(number, (8, 8)), "JPEG") for number in range(count)]


def test_plain_columns_of_any_writer(tmp_path: Path) -> None:
    content: list[bytes | None] = [*images(3), None, b"<html>"]
    cells = [{"bytes": c, "path": f"a/{n}.jpg"} for n, c in enumerate(content)]
    columns = {"id": [*"abcde"], "true_label": [0, None, 1, 0, 0], "y": [1, 1, 0, 1, 0]}
    for name, column in (("plain", pyarrow.array(content, "large_binary")), ("nested", pyarrow.array(cells))):
        table = pyarrow.table({"picture": column, "caption": ["x"] * 5, **columns})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        found = read(tmp_path / f"{name}.parquet", preprocess=SMALL, num_classes=2)
        assert [e.declared_id for e in found.examples] == ["a", "b", "c"]
        assert (found.labels.tolist(), found.truths.tolist()) == ([1, 1, 0], [0, -1, 1])
        assert [e.source for e in found.examples][1] == ("row 1" if name == "plain" else "1/1.jpg")
        assert [said.split(": ")[1] for said in found.unreadable] == [
            "holds no image, at most a path; save the table with the images in it",
            "holds a web page, not an image; download it again",
        ]


def test_text_labels_are_names(tmp_path: Path) -> None:
    table = pyarrow.table({"image": images(2), "label": ["dog", "cat"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", preprocess=SMALL, num_classes=2, class_names=("cat", "dog"))
    assert found.labels.tolist() == [1, 0]


Columns = dict[str, Any]
TWO: Columns = {"image": images(2), "label": [0, 1]}


def noted(notes: object) -> dict[str, str]:
    return {"huggingface": notes if isinstance(notes, str) else json.dumps({"info": {"features": notes}})}


REFUSED: dict[str, tuple[Columns, dict[str, str] | None, str]] = {
    "two columns of images": ({**TWO, "mask": images(2)}, None, "columns that hold images: image, mask"),
    "no label": ({"image": images(2), "kind": [0, 1]}, None, "no column 'label' among image, kind"),
    "two classes": (
        {"image": images(2), "fine": [0, 1], "coarse": [0, 1]},
        noted({kind: {"_type": "ClassLabel", "names": ["a", "b"]} for kind in ("fine", "coarse")}),
        r"columns that hold labels: fine \(2 classes\), coarse \(2 classes\), and the model has 2 classes",
    ),
    "a label missing": ({**TWO, "label": [0, None]}, None, "row 1: no label"),
    "hidden labels": ({**TWO, "label": [-1, -1]}, None, "2 of 2 rows rejected; row 0: no label"),
    "a label that is no class": ({**TWO, "label": [0, 2]}, None, "row 1: label 2 is no class"),
    "a label without a name": (
        {**TWO, "label": [0, 1]},
        noted({"label": {"_type": "ClassLabel", "names": ["cat"]}}),
        "row 1: label 1 is none of the table's 1 classes",
    ),
    "half a class": ({**TWO, "label": [0.0, 0.5]}, None, "row 0: label '0.0' is no class"),
    "an unknown name": ({**TWO, "label": ["cat", "\x1b[31m"]}, None, "row 0: label 'cat' is neither"),
    "one id twice": ({**TWO, "id": [7, 7]}, None, "row 1: id '7' is there twice"),
    "names that are none": (
        TWO,
        noted({"label": {"_type": "ClassLabel", "names": [1, None]}}),
        "the names of its classes are no texts",
    ),
    "a number of names": (
        TWO,
        noted({"label": {"_type": "ClassLabel", "names": 5}}),
        "the names of its classes are no texts",
    ),
    "notes that are none": (TWO, noted("[" * 100_000), "its notes on columns"),
    "no rows": ({"image": pyarrow.array([], "binary"), "label": []}, None, "has 0 rows"),
}


@pytest.mark.parametrize(("count", "column"), [(3, "coarse_label"), (COUNT, "fine_label")])
@pytest.mark.parametrize("form", ["saved", "table.parquet"])
def test_of_two_kinds_of_labels_the_model_has_as_many_classes_as_one(
    form: str, count: int, column: str, tmp_path: Path
) -> None:
    """As in CIFAR-100, whose images have a class of a hundred and one of twenty."""
    names = {kind: [f"{kind} {n}" for n in range(size)] for kind, size in (("fine", COUNT), ("coarse", 3))}
    features = {f"{kind}_label": datasets.ClassLabel(names=names[kind]) for kind in names}
    columns = {"fine_label": list(range(COUNT)), "coarse_label": [n % 3 for n in range(COUNT)]}
    one = datasets.Dataset.from_dict(
        {"img": [picture(number, (8, 8)) for number in range(COUNT)], **columns},
        features=datasets.Features({"img": datasets.Image(), **features}),
    )
    (one.save_to_disk if form == "saved" else one.to_parquet)(tmp_path / form)
    found = read(tmp_path / form, preprocess=SMALL, num_classes=count)
    assert found.labels.tolist() == columns[column]
    assert found.class_names == tuple(names[column.split("_")[0]])
    assert found.source.endswith(f"{form} ({column})")
    assert class_names_of(tmp_path / form) == ()
    with pytest.raises(DataRejected, match=r"fine_label \(10 classes\), coarse_label \(3 classes\), and the model"):
        read(tmp_path / form, preprocess=SMALL, num_classes=5)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_of_images_is_refused(case: str, tmp_path: Path) -> None:
    columns, notes, message = REFUSED[case]
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(notes), tmp_path / "a.parquet")
    with pytest.raises(DataRejected, match=message) as refused:
        read(tmp_path / "a.parquet", preprocess=SMALL, num_classes=2)
    assert safe(str(refused.value))


def edited(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def compressed(folder: Path) -> None:
    path = sorted(folder.glob("*.arrow"))[0]
    with pyarrow.memory_map(str(path)) as source:
        table = pyarrow.ipc.open_stream(source).read_all()
        options = pyarrow.ipc.IpcWriteOptions(compression="lz4")
        with pyarrow.ipc.new_stream(folder / "new", table.schema, options=options) as writer:
            writer.write_table(table)
    (folder / "new").replace(path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: [p.write_bytes(p.read_bytes()[:900]) for p in f.glob("*.arrow")], "is no whole Arrow file"),
    "empty": (lambda f: [p.write_bytes(b"") for p in f.glob("*.arrow")], "is no whole Arrow file"),
    "a page": (lambda f: [p.write_bytes(b"<html>" * 99) for p in f.glob("*.arrow")], "is no whole Arrow file"),
    "missing": (lambda f: sorted(f.glob("*.arrow"))[1].unlink(), "does not exist"),
    "compressed": (compressed, "is compressed"),
    "outside": (edited(lambda s: {**s, "_data_files": [{"filename": "../saved/x.arrow"}]}), "of its own folder"),
    "no files": (edited(lambda s: {**s, "_data_files": 7}), "of its own folder"),
    "a selection": (edited(lambda s: {**s, "_indices_data_files": [{"filename": "i.arrow"}]}), "a selection of other"),
    "a list": (edited(lambda s: [s]), "is no JSON of a saved dataset"),
    "no JSON": (lambda f: (f / "state.json").write_text("[" * 100_000), "is no JSON of a saved dataset"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_saved_dataset_that_is_not_whole_is_refused(case: str, written: Path, tmp_path: Path) -> None:
    edit, message = BROKEN[case]
    own = shutil.copytree(written / "saved", tmp_path / "own")
    edit(own)
    with pytest.raises(DataRejected, match=message) as refused:
        read(own, preprocess=SMALL, num_classes=3)
    assert safe(str(refused.value))


def test_splits_are_not_mixed_and_missing_files_are_noticed(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="holds several splits: train, test"):
        read(written / "splits", preprocess=SMALL, num_classes=3)
    assert len(read(written / "splits/test", preprocess=SMALL, num_classes=3)) == COUNT
    own = shutil.copytree(written / "tables", tmp_path / "own")
    first = next(iter(sorted(own.iterdir())))
    shutil.copy(first, own / "test-00000-of-00001.parquet")
    with pytest.raises(DataRejected, match="holds several splits: test, train"):
        read(own, preprocess=SMALL, num_classes=3)
    (own / "test-00000-of-00001.parquet").unlink()
    first.unlink()
    with pytest.raises(DataRejected, match="holds 1 of 2 files"):
        read(own, preprocess=SMALL, num_classes=3)


def test_files_of_one_set_have_the_same_columns(written: Path, tmp_path: Path) -> None:
    own = shutil.copytree(written / "tables", tmp_path / "own")
    parquet.write_table(pyarrow.table(TWO), sorted(own.iterdir())[1])
    with pytest.raises(DataRejected, match="has other columns than"):
        read(own, preprocess=SMALL, num_classes=3)


def test_a_row_group_that_memory_cannot_hold_is_refused(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memaudit.data.parquet.LARGEST", 1)
    with pytest.raises(DataRejected, match="lie in one row group of"):
        read(written / "tables", preprocess=SMALL, num_classes=3)


def test_without_pyarrow_it_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for form in ("saved", "tables"):
        with pytest.raises(EnvironmentFault, match="needs pyarrow, which is not installed"):
            read(written / form, preprocess=SMALL, num_classes=3)
