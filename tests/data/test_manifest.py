"""Manifests: every row is audited as written or its line is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memaudit.data import read
from memaudit.data.classes import Classes
from memaudit.data.manifest import list_manifest
from memaudit.errors import DataRejected, ExitCode
from tests.data.test_read import SMALL, animals, safe, write

__all__ = ["animals"]
NAMES = ("cat", "dog")

GOOD = [
    ("csv", "m.csv", "path,label\ncat/1.png,1\n"),
    ("name", "m.csv", "path,label\ncat/1.png,dog\n"),
    ("leading zeros", "m.csv", "path,label\ncat/1.png,001\n"),
    ("byte order mark", "m.csv", "\ufeffpath,label\ncat/1.png,1\n"),
    ("no last newline", "m.csv", "path,label\ncat/1.png,1"),
    ("windows lines", "m.csv", "path,label\r\ncat/1.png,1\r\n"),
    ("blank lines", "m.csv", "path,label\n\ncat/1.png,1\n\n"),
    ("quotes", "m.csv", '"path","label"\n"cat/1.png","1"\n'),
    ("other order", "m.csv", "label,note,path\n1,,cat/1.png\n"),
    ("dot slash", "m.csv", "path,label\n./cat/1.png,1\n"),
    ("upper-case suffix", "m.CSV", "path,label\ncat/1.png,1\n"),
    ("semicolons", "m.csv", "path;label\ncat/1.png;1\n"),
    ("tabs", "m.csv", "label\tpath\n1\tcat/1.png\n"),
    ("capitals", "m.csv", "Path,Label\ncat/1.png,1\n"),
    ("spaces", "m.csv", "path, label\ncat/1.png, dog\n"),
    ("empty cells at the end", "m.csv", "path,label\ncat/1.png,1\n,\n"),
    ("torchvision's words", "m.csv", "filename,target\ncat/1.png,1\n"),
    ("kaggle's words", "m.csv", "image,class\ncat/1.png,dog\n"),
    ("a class of the user's own beside the label", "m.csv", "path,label,class\ncat/1.png,1,x\n"),
    ("tsv", "m.tsv", "path\tlabel\ncat/1.png\t1\n"),
    ("jsonl", "m.jsonl", '{"path": "cat/1.png", "label": 1}\n'),
    ("jsonl name", "m.jsonl", '{"label": "dog", "path": "cat/1.png", "id": 3, "note": null}\n\n'),
    ("jsonl digits", "m.jsonl", '{"label": "1", "path": "cat/1.png"}'),
]


@pytest.mark.parametrize(("name", "file", "text"), GOOD, ids=[c[0] for c in GOOD])
def test_good_manifests(name: str, file: str, text: str, animals: Path) -> None:
    (animals / file).write_bytes(text.encode())
    found = read(animals / file, preprocess=SMALL, num_classes=2, class_names=NAMES)
    assert [(e.source.removeprefix("./"), e.label, e.index) for e in found.examples] == [("cat/1.png", 1, 0)]


ROWS = [
    ("climbs", "../secret.png,1", r"line 2: path '\.\./secret\.png' climbs"),
    ("climbs inside", "cat/../cat/1.png,1", "climbs"),
    ("climbs with backslashes", "cat\\..\\..\\x.png,1", "climbs"),
    ("absolute", "/etc/passwd,1", "line 2: path '/etc/passwd' is absolute"),
    ("drive", "C:\\x.png,1", "is absolute"),
    ("link out", "out.png,1", r"'out\.png' is a symbolic link that leaves"),
    ("link folder out", "outdir/secret.png,1", "is a symbolic link that leaves"),
    ("loop", "loop.png,1", r"'loop\.png' cannot be reached"),
    ("folder", "cat,1", "'cat' is a folder, not a file"),
    ("itself", ".,1", "is a folder"),
    ("missing", "cat/3.png,1", r"'cat/3\.png' does not exist"),
    ("below a file", "cat/1.png/x,1", "cannot be reached"),
    ("fifo", "pipe.png,1", "not a regular file"),
    ("long name", "x" * 5000 + ",1", "cannot be reached"),
    ("no path", ",1", "the path is empty"),
    ("missing cell", "cat/1.png", "1 cells, the header has 2"),
    ("extra cell", "cat/1.png,1,2", "3 cells, the header has 2"),
    ("negative", "cat/1.png,-1", "label '-1' is neither"),
    ("ignore index", "cat/1.png,-100", "label '-100' is neither"),
    ("too large", "cat/1.png,2", "label 2 is no class; the model's labels are 0 to 1"),
    ("ten", "cat/1.png,10", "label 10 is no class"),
    ("float", "cat/1.png,1.0", r"label '1\.0' is neither"),
    ("underscore", "cat/1.png,1_000", "label '1_000' is neither"),
    ("plus", "cat/1.png,+1", "is neither"),
    ("space", "cat/1.png, 1", "is neither"),
    ("ten digits", "cat/1.png,0000000001", "is neither"),
    ("arabic digit", "cat/1.png,١", "is neither"),
    ("full width digit", "cat/1.png,１", "is neither"),
    ("newline", 'cat/1.png,"1\n"', r"label '1\\x0a' is neither"),
    ("nan", "cat/1.png,nan", "is neither"),
    ("empty label", "cat/1.png,", "the label is empty"),
    ("typo", "cat/1.png,dgo", "label 'dgo' is neither an index nor a class name; closest: 'dog'"),
    ("case", "cat/1.png,Dog", "closest: 'dog'"),
    ("4 kB", "cat/1.png," + "x" * 4096, r"label 'x{199}…' is neither"),
    ("workflow command", 'cat/1.png,"x\n::error::y"', r"x\\x0a::error::y"),
]


@pytest.fixture
def hostile(animals: Path) -> Path:
    write(Path("secret.png"), 70)
    (animals / "out.png").symlink_to("../secret.png")
    (animals / "outdir").symlink_to("..")
    (animals / "loop.png").symlink_to("loop.png")
    os.mkfifo(animals / "pipe.png")
    return animals


@pytest.mark.parametrize(("name", "row", "message"), ROWS, ids=[c[0] for c in ROWS])
def test_a_row_that_cannot_be_audited_is_named_by_its_line(name: str, row: str, message: str, hostile: Path) -> None:
    (hostile / "m.csv").write_text(f"path,label\n{row}\n")
    with pytest.raises(DataRejected, match=message) as caught:
        read(hostile / "m.csv", preprocess=SMALL, num_classes=2, class_names=NAMES)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert str(caught.value).startswith("animals/m.csv: line 2: ")
    assert safe(caught.value.message)


FILES = [
    ("nothing", b"", "has no rows; nothing to audit"),
    ("header only", b"path,label\n", "has no rows; nothing to audit"),
    ("nul", b"path,label\na\0b.png,1\n", "line 2: a NUL character"),
    ("utf-16", "path,label\n".encode("utf-16"), "is not UTF-8: it looks like UTF-16"),
    ("utf-16 without mark", "path,label\n".encode("utf-16-le"), "line 1: a NUL character"),
    ("latin-1", "path,label\ncafé.png,1\n".encode("latin-1"), "is not UTF-8: byte 14"),
    ("surrogate", b"path,label\n\xed\xb3\xbf.png,1\n", "is not UTF-8"),
    (
        "unclosed quote",
        b'path,label\ncat/1.png,1\n"cat/2.png,1\ncat/10.png,1\n',
        "line 3: broken csv: a quote is not closed",
    ),
    ("text after quote", b'path,label\n"cat/1.png"x,1\n', "line 2: broken csv"),
    ("endless cell", b'path,label\n"' + b"x" * 200_000, "line 2: broken csv"),
    ("no header", b"cat/1.png,1\n", "line 1: no column 'path'"),
    ("no label", b"path,id\ncat/1.png,1\n", "line 1: no column 'label'"),
    ("misspelt", b"paths,label\ncat/1.png,1\n", "unknown column 'paths'; closest: 'path'"),
    ("another's semicolons", b"a;b\ncat/1.png;1\n", "line 1: no column 'path'"),
    ("twice", b"path,label,label\ncat/1.png,1,0\n", "column 'label' is there twice"),
    (
        "duplicate ids",
        b"path,label,id\ncat/1.png,1,a\ncat/2.png,1,a\n",
        "2 rows rejected; line 3: id 'a' is already the id of line 2",
    ),
    ("true label", b"path,label,true_label\ncat/1.png,1,7\n", "line 2: label 7 is no class"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[c[0] for c in FILES])
def test_a_broken_table_is_refused(name: str, content: bytes, message: str, animals: Path) -> None:
    (animals / "m.csv").write_bytes(content)
    with pytest.raises(DataRejected, match=message) as caught:
        read(animals / "m.csv", preprocess=SMALL, num_classes=2, class_names=NAMES)
    assert caught.value.exit_code == ExitCode.REJECTED


JSON = [
    ("array", "[1]", "not a JSON object"),
    ("number", "1", "not a JSON object"),
    ("half", '{"path": "cat/1.png", ', "not a JSON object"),
    ("deep", "[" * 100_000, "not a JSON object"),
    ("huge number", '{"path": "cat/1.png", "label": ' + "9" * 5000 + "}", "not a JSON object"),
    ("twice", '{"path": "cat/1.png", "label": 1, "label": 0}', "a key is there twice"),
    ("nan", '{"path": "cat/1.png", "label": NaN}', "NaN is not JSON"),
    ("float", '{"path": "cat/1.png", "label": 1.0}', r"label 1\.0 is neither"),
    ("true", '{"path": "cat/1.png", "label": true}', "label True is neither"),
    ("list", '{"path": "cat/1.png", "label": [1]}', r"label \[1\] is neither"),
    ("negative", '{"path": "cat/1.png", "label": -1}', "label -1 is no class"),
    ("ten", '{"path": "cat/1.png", "label": 10}', "label 10 is no class"),
    ("null", '{"path": "cat/1.png", "label": null}', "no label"),
    ("none", '{"path": "cat/1.png"}', "no label"),
    ("no path", '{"label": 1}', "no path"),
    ("path object", '{"path": {}, "label": 1}', r"path \{\} is not text"),
    ("unknown", '{"path": "cat/1.png", "label": 1, "lable": 1}', "unknown key 'lable'; closest: 'label'"),
    ("nul", '{"path": "cat\\u0000.png", "label": 1}', "holds a NUL"),
    ("lone surrogate", '{"path": "\\ud800.png", "label": 1}', r"'\\ud800\.png' cannot be reached"),
]


@pytest.mark.parametrize(("name", "line", "message"), JSON, ids=[c[0] for c in JSON])
def test_a_broken_json_line_is_named(name: str, line: str, message: str, animals: Path) -> None:
    (animals / "m.jsonl").write_text('{"path": "cat/2.png", "label": 0}\n' + line)
    with pytest.raises(DataRejected, match="2 rows rejected; line 2: .*" + message):
        read(animals / "m.jsonl", preprocess=SMALL, num_classes=2, class_names=NAMES)


def test_all_row_errors_are_counted_and_the_first_twenty_shown(animals: Path) -> None:
    (animals / "m.csv").write_text("path,label\n" + "cat/1.png,7\n" * 30 + "cat/1.png,1\n")
    with pytest.raises(DataRejected, match="30 of 31 rows rejected; line 2: label 7 is no class") as caught:
        read(animals / "m.csv", preprocess=SMALL, num_classes=2)
    assert len(caught.value.details) == 20
    assert caught.value.details[19].startswith("line 21: ")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_a_manifest_that_is_no_file_is_refused(make: object, animals: Path) -> None:
    make(animals / "m.csv")  # type: ignore[operator]
    with pytest.raises(DataRejected, match=r"no class sub-folders|not a regular file"):
        read(animals / "m.csv", preprocess=SMALL, num_classes=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read_are_refused(animals: Path) -> None:
    (animals / "m.csv").write_text("path,label\ncat/1.png,1\n")
    (animals / "cat/1.png").chmod(0)
    with pytest.raises(DataRejected, match="permission denied"):
        read(animals / "m.csv", preprocess=SMALL, num_classes=2)
    (animals / "m.csv").chmod(0)
    with pytest.raises(DataRejected, match="cannot be read"):
        read(animals / "m.csv", preprocess=SMALL, num_classes=2)


def test_unreadable_images_are_told_with_their_line(animals: Path) -> None:
    (animals / "empty.png").touch()
    (animals / "m.csv").write_text("path,label\ncat/1.png,1\nempty.png,1\n")
    found = read(animals / "m.csv", preprocess=SMALL, num_classes=2)
    assert found.unreadable == ("line 3: empty.png: the file is empty",)
    assert len(found) == 1


def test_lines_count_records_that_span_several(animals: Path) -> None:
    (animals / "m.csv").write_text('path,label,note\ncat/1.png,1,"two\nlines"\ncat/2.png,1,x\n')
    found = read(animals / "m.csv", preprocess=SMALL, num_classes=2)
    assert [(e.line, e.note) for e in found.examples] == [(2, "two\\x0alines"), (4, "x")]


def test_ids_and_notes_come_out_printable(animals: Path) -> None:
    (animals / "m.csv").write_text("path,label,id,note\ncat/1.png,1,p-17,\x1b[31m\u202eblurry\ncat/2.png,1,,\n")
    found = read(animals / "m.csv", preprocess=SMALL, num_classes=2)
    assert [(e.declared_id, e.note) for e in found.examples] == [("p-17", "\\x1b[31m\\u202eblurry"), (None, None)]


def test_a_name_that_is_another_classes_index_is_ambiguous_in_csv_and_plain_in_json(animals: Path) -> None:
    names = ("0", "1", "10", "2")
    (animals / "m.csv").write_text("path,label\ncat/1.png,2\n")
    with pytest.raises(DataRejected, match="label '2' is ambiguous: index 2 is class '10', but class 3 is called '2'"):
        read(animals / "m.csv", preprocess=SMALL, num_classes=4, class_names=names)
    (animals / "m.jsonl").write_text('{"path": "cat/1.png", "label": 2}\n{"path": "cat/2.png", "label": "2"}')
    found = read(animals / "m.jsonl", preprocess=SMALL, num_classes=4, class_names=names)
    assert found.labels.tolist() == [2, 3]


def test_without_a_class_count_any_index_serves(animals: Path) -> None:
    (animals / "m.csv").write_text("path,label\ncat/1.png,999999999\n")
    assert read(animals / "m.csv", preprocess=SMALL, num_classes=None).labels.tolist() == [999_999_999]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "eel"), "the data declares 3 classes, the model has 2"),
        (("cat", "cat"), "class name 'cat' is declared twice"),
        (("cat", ""), "class 1 has an empty name"),
    ],
)
def test_class_names_that_cannot_be_are_refused(names: tuple[str, ...], message: str, animals: Path) -> None:
    (animals / "m.csv").write_text("path,label\ncat/1.png,1\n")
    with pytest.raises(DataRejected, match=message):
        read(animals / "m.csv", preprocess=SMALL, num_classes=2, class_names=names)


CLASSES = Classes.of([f"class {i}" for i in range(10)], 10)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), TEXT), min_size=1, max_size=8),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_what_is_written_is_what_is_read(rows: list[tuple[int, int, str]], suffix: str, animals: Path) -> None:
    import csv

    files = [f"{c}/{i}.png" for c in ("cat", "dog") for i in (1, 2, 10)]
    path = animals / f"m{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps({"path": files[f], "label": y, "note": n}) + "\n" for f, y, n in rows)
        else:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL)
            writer.writerows([("path", "label", "note"), *((files[f], y, n) for f, y, n in rows)])
    listing = list_manifest(path, CLASSES)
    assert [(r.name, r.label, r.note or "") for r in listing.rows] == [(files[f], y, n) for f, y, n in rows]
    for row in listing.rows:
        example = row.example("0")
        assert safe(example.note or "")


@quick
@given(
    content=st.binary(max_size=200) | st.text(max_size=100).map(lambda t: f"path,label\n{t}".encode(errors="replace")),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_any_bytes_are_rows_or_one_printable_error(content: bytes, suffix: str, animals: Path) -> None:
    path = animals / f"m{suffix}"
    path.write_bytes(content)
    try:
        rows = list_manifest(path, CLASSES).rows
    except DataRejected as error:
        told = (error.message, error.hint, *error.details)
    else:
        told = tuple(row.example("0").source for row in rows)
    assert told
    assert all(safe(line) for line in told)


@quick
@given(label=st.text(max_size=12) | st.from_regex(r"-?[0-9_.]{1,11}") | st.sampled_from(CLASSES.names))
def test_a_label_is_an_index_a_declared_name_or_an_error(label: str) -> None:
    from memaudit.data.images import RowError

    try:
        value = CLASSES.label(label)
    except RowError as error:
        value, told = None, str(error)
    else:
        told = ""
    assert safe(told)
    digits = label.isascii() and label.isdigit() and len(label) < 10
    expected = CLASSES.names.index(label) if label in CLASSES.names else int(label) if digits else None
    assert value == (expected if expected is not None and expected < 10 else None)


HOSTILE = ("=1+1", "a\u202eb", "<script>x</script>", "::error::x", "\u200b", "x" * 500)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_the_users_own_travel_with_the_example_and_print_as_one_line(animals: Path, suffix: str) -> None:
    row = {"path": "cat/1.png", "label": "cat", "site": "north", "=cmd": "1", "age": "", "x<b>": "\u202e=2"}
    path = animals / f"own{suffix}"
    header = ",".join(row)
    path.write_text(f"{header}\n{','.join(row.values())}\n" if suffix == ".csv" else json.dumps(row) + "\n", "utf-8")
    found = read(path, preprocess=SMALL, num_classes=2, class_names=NAMES).examples[0]
    assert found.columns == {"site": "north", "=cmd": "1", "x<b>": "\\u202e=2"}


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_column_comes_out_printable_and_short(animals: Path, value: str) -> None:
    path = animals / "own.csv"
    path.write_text(f'path,label,site\ncat/1.png,cat,"{value}"\n', "utf-8")
    shown = read(path, preprocess=SMALL, num_classes=2, class_names=NAMES).examples[0].columns["site"]
    assert shown.isprintable()
    assert len(shown) <= 200


@pytest.mark.parametrize(
    ("header", "message"),
    [("path,label,", "a column is called ''"), ("path,label,site,site", "'site' is there twice"),
     ("path,label,true_lable", "unknown column 'true_lable'; closest: 'true_label'"),
     ("path,label," + "x" * 61, "a column is called"),
     ("path,label," + ",".join(f"c{n}" for n in range(51)), "51 further")],
)  # fmt: skip
def test_a_column_that_is_none_is_refused(animals: Path, header: str, message: str) -> None:
    path = animals / "own.csv"
    path.write_text(header + "\n" + "cat/1.png,cat" + ",1" * (header.count(",") - 1) + "\n", "utf-8")
    with pytest.raises(DataRejected, match=message):
        read(path, preprocess=SMALL, num_classes=2, class_names=NAMES)
