"""Columns are the objects they stand for, element for element."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from memaudit.data import ExampleSet, read
from memaudit.data.classes import Classes
from memaudit.data.compact import Examples, Files, Row, Rows, Texts, labels_of, taken
from memaudit.data.examples import distinct
from memaudit.data.folder import list_folder
from memaudit.data.manifest import list_manifest
from tests.data.test_read import SMALL, write

ROWS = (
    Row("a/é.png", 3, 0),
    Row("a/\udcff.png", 0, 7, line=2, true_label=0, note="n", id="7", columns={"site": "x"}),
    Row("", 2**31 - 1, 1, line=9, true_label=5),
)


def test_texts_are_those_that_were_given() -> None:
    given = ["", "a", "\udcff\u202e", "日本", "a"]
    texts = Texts(given)
    assert list(texts) == given == [texts[i] for i in range(len(given))]
    assert (texts[-1], texts[1:3], len(texts), list(texts.take([4, 0, 3]))) == (
        "a",
        ("a", "\udcff\u202e"),
        5,
        ["a", "", "日本"],
    )
    with pytest.raises(IndexError):
        texts[5]
    assert texts.same(Texts(given))
    assert not texts.same(Texts(["", "", "a\udcff\u202e", "日本", "a"])), "the same characters, divided otherwise"


@pytest.mark.parametrize("form", [lambda rows: rows, pickle.loads], ids=["made", "sent"])
def test_rows_are_those_that_were_given(form: object) -> None:
    rows = Rows.of(iter(ROWS))
    rows = form(pickle.dumps(rows)) if form is pickle.loads else rows  # type: ignore[operator]
    assert rows == ROWS
    assert rows.take(np.array([2, 1, 1])) == (ROWS[2], ROWS[1], ROWS[1])
    assert labels_of(rows).tolist() == labels_of(ROWS).tolist() == [3, 0, 2**31 - 1]
    assert taken(ROWS, np.array([1])) == (ROWS[1],)
    assert rows != ROWS[:2]
    many = [Row(str(n), n % 5, n) for n in range(10_000)]
    assert Rows.of(many) == many


def test_files_may_be_elsewhere() -> None:
    paths = [Path("/data/set/a/1.png"), Path("/cache/ab12"), Path("/data/set/b/2.png")]
    files = Files.of(Path("/data/set"), paths)
    assert list(files) == paths
    assert list(files.paths) == ["a/1.png", "/cache/ab12", "b/2.png"]
    assert list(files.take([2, 0])) == [paths[2], paths[0]]


def test_examples_are_those_of_their_rows_whatever_is_changed(tmp_path: Path) -> None:
    places, ids = np.array([1, 0]), np.array([255, 2**64 - 1], np.uint64)
    compact = Examples(Rows.of(ROWS), places, ids, labels_of(ROWS)[places])
    plain = (ROWS[1].example("00000000000000ff"), ROWS[0].example("f" * 16))
    assert compact == plain
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    one, other = ExampleSet(compact, pixels, "s"), ExampleSet(plain, pixels, "s")
    for change in (
        lambda s: s,
        lambda s: s.subset([1, 0, 0]),
        lambda s: s.redacted().labelled([5, 6]),
        lambda s: s.unnumbered().redacted().subset([1]),
        lambda s: s.labelled([9, 8]).subset([0]),
        copy.deepcopy,
    ):
        mine, theirs = change(one), change(other)
        assert mine.examples == theirs.examples
        assert (mine.sha256, mine.labels.tolist(), mine.numbers) == (
            theirs.sha256,
            theirs.labels.tolist(),
            theirs.numbers,
        )
        assert list(mine.ids()) == [e.id for e in theirs.examples]


@pytest.mark.parametrize("paired", [False, True])
def test_what_is_distinct_is_what_a_plain_loop_finds(paired: bool) -> None:
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 6, 60).astype(np.uint64) + np.uint64(2**63), rng.integers(0, 4, 60)
    rows = [Row(f"{n}", int(label), n) for n, label in enumerate(labels)]
    compact = Examples(Rows.of(rows), np.arange(60), ids, labels)
    seen: dict[tuple[str, int], int] = {}
    asked: dict[tuple[str, int], int] = {}
    keep, repeated = [], 0
    for n, example in enumerate(compact):
        repeated += asked.setdefault((example.id, example.label // 2 if paired else 0), n) != n
        if seen.setdefault((example.id, example.label), n) == n:
            keep.append(n)
    for form in (compact, tuple(compact)):
        found, words = distinct(form, paired)
        assert found.tolist() == keep
        assert len(words) == repeated
    assert distinct(compact, paired)[1] == words


def test_a_listed_folder_or_manifest_holds_no_object_a_row(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"set/{'ab'[number % 2]}/{number}.png", seed=number)
    (tmp_path / "m.csv").write_text("path,label,note\nset/a/0.png,0,x\nset/b/1.png,1,\n", encoding="utf-8")
    found = list_folder(tmp_path / "set", Classes(), "natural")
    assert isinstance(found.rows, Rows)
    assert isinstance(found.files, Files)
    assert found.files.paths is found.rows.names, "one copy of the names"
    listed = list_manifest(tmp_path / "m.csv", Classes(("a", "b"), 2))
    assert isinstance(listed.rows, Rows)
    assert [row.note for row in listed.rows] == ["x", None]
    assert list(listed.files) == [(tmp_path / name).resolve() for name in ("set/a/0.png", "set/b/1.png")]
    examples = read(tmp_path / "set", preprocess=SMALL, num_classes=2).examples
    assert isinstance(examples, Examples)
    assert [(e.source, e.label, e.index) for e in examples] == [
        ("a/0.png", 0, 0),
        ("a/2.png", 0, 1),
        ("b/1.png", 1, 2),
        ("b/3.png", 1, 3),
    ]
