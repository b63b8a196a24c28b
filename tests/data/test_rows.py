"""Lists of rows of a data set, as people and cleanlab write them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from memaudit import data as sources
from memaudit.errors import DataRejected, ExitCode
from tests.data.test_read import SMALL, animals

__all__ = ["animals"]

read = partial(sources.read, row_order="timm")

# animals: cat/1 cat/2 cat/10 dog/1 dog/2 dog/10 are rows 0..5; wanted is always rows 4 and 1.
WANTED = [4, 1]
SAVETXT = "4.000000000000000000e+00\n1.000000000000000000e+00\n"


@pytest.fixture
def data(animals: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez("data.npz", x=x, y=[0, 0, 0, 1, 1, 1], id=["a", "b", "c", "d", "e", "f"])
    return animals


@pytest.mark.parametrize(
    ("file", "text", "lines"),
    [
        ("r.txt", "4\n1\n", [1, 2]),
        ("r.txt", "\ufeff4\r\n\r\n1", [1, 3]),
        ("r.txt", SAVETXT, [1, 2]),
        ("r.txt", "dog/2.png\ncat/2.png\n", [1, 2]),
        ("r.txt", "./dog/2.png\nanimals/cat/2.png\n", [1, 2]),
        ("r.csv", "4\n1\n", [1, 2]),
        ("r.csv", "index\n4\n1\n", [2, 3]),
        ("r.csv", "path,note\ndog/2.png,x\ncat/2.png,\n", [2, 3]),
        ("r.csv", "path,label\ndog/2.png,1\ncat/2.png,0\n", [2, 3]),
        ("r.csv", "index,path,label\n4,dog/2.png,dog\n1,cat/2.png,0\n", [2, 3]),
        ("r.csv", ",filename\n0,dog/2.png\n1,cat/2.png\n", [2, 3]),
        ("r.txt", "C:\\data\\animals\\dog\\2.png\n/home/ann/animals/cat/2.png\n", [1, 2]),
    ],
)
def test_lists_of_a_folders_rows(file: str, text: str, lines: list[int], data: Path) -> None:
    place = data if "label" in text else Path()
    (place / file).write_bytes(text.encode())
    found = read(place / file, preprocess=SMALL, num_classes=2, data=data)
    assert [e.source.removeprefix("./") for e in found.examples] == ["dog/2.png", "cat/2.png"]
    assert found.labels.tolist() == [1, 0]
    assert [e.line for e in found.examples] == lines
    if "label" not in text:
        assert [e.index for e in found.examples] == WANTED
        assert found.source == file


@pytest.mark.parametrize("text", ["4\n1\n", "e\nb\n"])
def test_lists_of_an_arrays_rows(text: str, data: Path) -> None:
    Path("r.txt").write_text(text)
    found = read("r.txt", preprocess=SMALL, num_classes=2, data="data.npz")
    whole = read("data.npz", preprocess=SMALL, num_classes=2)
    assert [e.id for e in found.examples] == [whole.examples[i].id for i in WANTED]
    assert [e.declared_id for e in found.examples] == ["e", "b"]


@pytest.mark.parametrize(
    "array",
    [np.array([4, 1]), np.array([4, 1], np.uint8), np.array([4, 1], ">i8"), np.array(["dog/2.png", "cat/2.png"])],
)
def test_npy_lists(array: np.ndarray, data: Path) -> None:
    np.save("r.npy", array)
    found = read("r.npy", preprocess=SMALL, num_classes=2, data=data)
    assert [e.index for e in found.examples] == WANTED
    assert found.examples[0].line is None


@pytest.mark.parametrize("form", ["npy", "words", "digits", "savetxt", "csv"])
def test_masks(form: str, data: Path) -> None:
    mask = np.array([False, True, False, False, True, False])
    name = {"npy": "m.npy", "csv": "m.csv"}.get(form, "m.txt")
    if form == "npy":
        np.save(name, mask)
    elif form == "savetxt":
        np.savetxt(name, mask)
    else:
        Path(name).write_text("\n".join(str(int(m)) if form == "digits" else str(m) for m in mask))
    assert [e.index for e in read(name, preprocess=SMALL, num_classes=2, data=data).examples] == [1, 4]


FLAGS = [False, True, False, False, True, False]


def datalab(index: bool, rows: list[int], given: list[object]) -> str:
    head = ("," if index else "") + "is_label_issue,label_score,given_label,predicted_label\n"
    lines = [f"{i}," * index + f"{FLAGS[i]},0.0{i},{given[i]},{1 - i // 3}\n" for i in rows]
    return head + "".join(lines)


INTEGERS, WORDS = [0, 0, 0, 1, 1, 1], ["cat"] * 3 + ["dog"] * 3


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("datalab", datalab(True, list(range(6)), INTEGERS), [1, 4]),
        ("names", datalab(True, list(range(6)), WORDS), [1, 4]),
        ("names nobody declared", datalab(True, list(range(6)), ["x"] * 6), [1, 4]),
        ("without index", datalab(False, list(range(6)), INTEGERS), [1, 4]),
        ("sorted", datalab(True, [4, 0, 1, 2, 3, 5], INTEGERS), [4, 1]),
        ("filtered", datalab(True, [4, 1], INTEGERS), [4, 1]),
        ("clean learning", datalab(True, list(range(6)), INTEGERS).replace("label_score", "label_quality"), [1, 4]),
        (
            "all issues",
            ",is_label_issue,label_score,is_outlier_issue,outlier_score\n4,True,0.1,False,0.9\n1,True,0.2,True,0.1\n",
            [4, 1],
        ),
    ],
)
def test_cleanlabs_tables_as_they_come(name: str, text: str, expected: list[int], data: Path) -> None:
    Path("issues.csv").write_text(text)
    found = read("issues.csv", preprocess=SMALL, num_classes=2, data=data)
    assert [e.index for e in found.examples] == expected
    assert "cleanlab: label score 0." in (found.examples[0].note or "")


def test_a_folder_that_datalab_saved_stands_for_its_table(tmp_path: Path, data: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "datalab.pkl").write_bytes(b"never opened")
    (tmp_path / "lab" / "issues.csv").write_text("is_label_issue,label_score\n" + "False,0.9\nTrue,0.1\n" * 3)
    found = read(tmp_path / "lab", preprocess=SMALL, num_classes=2, data=data)
    assert [e.index for e in found.examples] == [1, 3, 5]
    with pytest.raises(DataRejected, match="line 1"):
        read(tmp_path / "lab", preprocess=SMALL, num_classes=2)


def test_cleanlabs_own_output_types(data: Path) -> None:
    """What `find_label_issues` returns: a boolean array, or an integer array ranked by score."""
    np.save("mask.npy", np.array(FLAGS))
    np.save("ranked.npy", np.array([4, 1]))
    mask = read("mask.npy", preprocess=SMALL, num_classes=2, data="data.npz")
    ranked = read("ranked.npy", preprocess=SMALL, num_classes=2, data="data.npz")
    assert {e.id for e in mask.examples} == {e.id for e in ranked.examples}


def test_extras_of_a_row_list_reach_the_examples(data: Path) -> None:
    Path("r.csv").write_text("id,true_label,note\ne,0,looks like a cat\n")
    found = read("r.csv", preprocess=SMALL, num_classes=2, data="data.npz")
    assert (found.examples[0].true_label, found.examples[0].note) == (0, "looks like a cat")
    assert found.examples[0].declared_id == "e"


BAD = [
    ("beyond", "r.txt", "4\n6\n", r"1 of 2 entries rejected; line 2: '6' is no index from 0 to 5"),
    ("negative", "r.txt", "-1\n", "'-1' is no index"),
    ("float", "r.txt", "1.5\n", r"'1\.5' is no index"),
    ("unknown file", "r.txt", "cat/3.png\n", r"'cat/3\.png' is no index from 0 to 5, id or file"),
    ("base name of two", "r.txt", "2.png\n", r"'2\.png' could be row 1 \(cat/2\.png\), row 4 \(dog/2\.png\)"),
    ("end of a name", "r.txt", "2/1.png\n", "is no index"),
    ("climbs", "r.txt", "../animals/cat/1.png\n", "is no index"),
    (
        "twice",
        "r.txt",
        "4\n4\n",
        "line 2: row 4 is already named by line 1; a mask has one value for each of the 6 rows",
    ),
    ("short mask", "r.txt", "1\n0\n1\n", "row 1 is already named by line 1"),
    ("short words", "r.txt", "True\nFalse\n", "a mask of 2 values for 6 rows"),
    ("nothing", "r.txt", "", "selects none of the 6 rows"),
    ("empty mask", "r.txt", "False\n" * 6, "selects none of the 6 rows"),
    ("nul", "r.txt", "4\0", "NUL"),
    ("columns", "r.csv", "score,rank\n4,1\n", "columns score, rank say neither rows nor examples"),
    ("keys of two rows", "r.csv", "index,path\n3,dog/2.png\n", "is row 4 .*, but its index '3' is row 3"),
    ("two paths", "r.csv", "file,path\ndog/2.png,dog/2.png\n", "say neither rows nor examples"),
    ("another label", "r.csv", "index,label\n4,cat\n", "label 'cat', but row 4 .* has label 1"),
    ("unknown extra", "r.csv", "index,score\n4,1\n", "say neither"),
    ("missing cell", "r.csv", "index,note\n4\n", "line 2: 1 cells, the header has 2"),
    ("path as index", "r.csv", "path\n4\n", "'4' is no index"),
    ("true label", "r.csv", "index,true_label\n4,9\n", "line 2: label 9 is no class"),
    ("escape", "r.txt", "\x1b[31m\n", r"'\\x1b\[31m' is no index"),
    ("cleanlab without index", "r.csv", datalab(False, [4, 1], INTEGERS), "2 lines for 6 rows and no index column"),
    (
        "cleanlab of other rows",
        "r.csv",
        datalab(True, [4, 1], [1, 1, 1, 0, 0, 0]),
        r"label '0', but row 4 \(dog/2\.png\) has label 1",
    ),
    ("cleanlab beyond", "r.csv", ",is_label_issue\n9,True\n", "line 2: '9' is no index"),
    ("cleanlab flag", "r.csv", ",is_label_issue\n1,maybe\n", "line 2: no true or false in is_label_issue"),
    ("cleanlab no issues", "r.csv", ",is_label_issue\n1,False\n", "selects none"),
]


@pytest.mark.parametrize(("name", "file", "text", "message"), BAD, ids=[c[0] for c in BAD])
def test_a_list_that_does_not_name_rows_is_refused(name: str, file: str, text: str, message: str, data: Path) -> None:
    Path(file).write_text(text)
    with pytest.raises(DataRejected, match=message) as caught:
        read(file, preprocess=SMALL, num_classes=2, data=data)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert str(caught.value).startswith(file)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[4, 1], [1, 2]]), r"has shape \(2, 2\)"),
        (np.array([4.5, 1.0]), "is float64; give integers"),
        (np.array([True, False]), "a mask of 2 values for 6 rows"),
        (np.array([-1]), "element 0: '-1' is no index"),
        (np.array([4, 6]), "element 1: '6' is no index"),
        (np.array([4, 4]), "row 4 is already named by element 0"),
        (np.array([], int), "selects none"),
        (np.array([None]), "dtype object is not allowed"),
    ],
)
def test_an_array_that_does_not_name_rows_is_refused(array: np.ndarray, message: str, data: Path) -> None:
    np.save("r.npy", array)
    with pytest.raises(DataRejected, match=message):
        read("r.npy", preprocess=SMALL, num_classes=2, data=data)


def test_an_index_that_is_another_rows_id_is_ambiguous_until_the_column_says(data: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez("ids.npz", x=x, y=[0, 1, 0], id=[2, 1, 0])
    Path("r.txt").write_text("2\n")
    with pytest.raises(DataRejected, match=r"'2' could be row 2 .*, row 0 .*; use a \.csv whose column"):
        read("r.txt", preprocess=SMALL, num_classes=2, data="ids.npz")
    for column, row in (("index", 2), ("id", 0)):
        Path("r.csv").write_text(f"{column}\n2\n")
        assert read("r.csv", preprocess=SMALL, num_classes=2, data="ids.npz").examples[0].index == row


def test_only_listed_images_are_decoded(data: Path) -> None:
    (data / "cat/1.png").write_bytes(b"")
    Path("r.txt").write_text("4\n")
    assert read("r.txt", preprocess=SMALL, num_classes=2, data=data).unreadable == ()
