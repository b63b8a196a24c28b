"""Writing and reading reports: whole files or none, and errors that say what was found."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memaudit import report
from memaudit.errors import DataRejected, EnvironmentFault, UsageError
from memaudit.report import json as report_json
from memaudit.report.document import Report
from tests import report_samples as samples


def test_a_report_reads_back_equal(tmp_path: Path) -> None:
    written = samples.small()
    assert report.read(report.write(written, tmp_path / "report.json")) == written


def test_hostile_strings_read_back_unchanged(tmp_path: Path) -> None:
    read = report.read(report.write(samples.hostile(), tmp_path / "report.json"))
    assert [f.example.source for f in read.findings] == list(samples.HOSTILE)


def test_json_is_sorted_ends_in_one_newline_and_is_the_same_every_time() -> None:
    text = report.render(samples.small(), ".json")
    assert text == report.render(samples.small(), ".json")
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("sample", [samples.small(), samples.hostile(), samples.small(findings=[])])
def test_a_finding_at_a_time_gives_the_text_of_the_whole(sample: Report) -> None:
    whole = sample.model_dump(mode="json")
    whole["volatile"] = report_json.finite(whole["volatile"])
    assert report.render(sample, ".json") == report_json.encode(whole, indent=2) + "\n"
    for inline in (False, True):
        assert "".join(report_json.compact(sample, inline=inline)) == report_json.encode(whole, inline=inline)


@pytest.mark.parametrize(("suffix", "times"), [(".json", 1), (".html", 2.5)])  # the page holds the JSON, packed
def test_a_large_report_is_written_piece_by_piece(tmp_path: Path, suffix: str, times: float) -> None:
    sample, path = samples.large(1500), tmp_path / f"report{suffix}"
    report.write(samples.large(3), path)  # what is loaded once
    tracemalloc.start()
    try:
        report.write(sample, path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < times * path.stat().st_size


def test_non_finite_numbers_in_the_volatile_block_become_null() -> None:
    volatile = {"seconds": float("nan"), "nested": [{"x": float("inf")}], "fine": 0.1}
    text = report.render(samples.small(volatile=volatile), ".json")
    assert json.loads(text)["volatile"] == {"seconds": None, "nested": [{"x": None}], "fine": 0.1}


def test_json_steers_no_terminal() -> None:
    text = report.render(samples.hostile(), ".json")
    assert not [c for c in text if c != "\n" and not c.isprintable()]


@pytest.mark.parametrize("suffix", report.SUFFIXES)
def test_every_suffix_writes_a_file_in_a_new_folder(tmp_path: Path, suffix: str) -> None:
    path = report.write(samples.small(), tmp_path / "new" / f"report{suffix.upper()}")
    assert path.read_bytes().endswith(b"PAR1" if suffix == ".parquet" else b"\n")
    assert os.listdir(path.parent) == [path.name]


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no report format '.htm'; closest: '.html'") as caught:
        report.write(samples.small(), tmp_path / "report.htm")
    assert caught.value.hint == "Choose the format by suffix: .json, .html, .md, .sarif, .xml, .csv, .parquet"


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere.json"))


def _read_only(path: Path) -> None:
    path.write_text("old")
    path.chmod(0o444)


def _in_read_only_folder(path: Path) -> None:
    path.parent.chmod(0o555)


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (_link, "is a symbolic link"),
    (Path.mkdir, "is a folder"),
    (_read_only, "is read-only"),
    (_in_read_only_folder, "the folder is read-only"),
    (os.mkfifo, "is not a regular file"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_an_output_that_must_not_be_replaced_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "report.json"
    spoil(path)
    before = sorted(os.listdir(folder))
    try:
        with pytest.raises(UsageError, match=message):
            report.write(samples.small(), path)
        assert sorted(os.listdir(folder)) == before
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["file/report.json", "x" * 300 + ".json"])
def test_an_impossible_path_is_the_callers_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        report.write(samples.small(), tmp_path / name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_report_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, code: int
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(EnvironmentFault, match="cannot write"):
        report.write(samples.small(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_replaced_report_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o600)
    report.write(samples.small(), path)
    assert path.stat().st_mode & 0o777 == 0o600


def _changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(report.render(samples.small(), ".json")) | changes).encode()


UNREADABLE: list[tuple[bytes, str]] = [
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"\xff\xfe{}", "is not JSON"),
    (b"[]", "it holds a list, not an object"),
    (b'{"a": NaN}', "NaN is not a JSON number"),
    (b'{"a": 1, "a": 2}', "'a' is given twice"),
    (b"[" * 100_000, "nested too deeply"),
    (b"9" * 10_000, "is not JSON"),
    (b"{}", "it has no schema_version"),
    (b'{"schema_version": 99}', "has schema version 99; this memaudit reads 1"),
    (b'{"schema_version": true}', "has schema version True"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git-LFS pointer"),
    (_changed(surprise=1), "1 fields do not fit the schema"),
    (_changed(status="fine", verdict=None), "2 fields do not fit the schema"),
]


@pytest.mark.parametrize(("content", "message"), UNREADABLE)
def test_what_is_no_report_is_rejected_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(DataRejected, match=message):
        report.read(path)


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(_changed(status="fine"))
    with pytest.raises(DataRejected) as caught:
        report.read(path)
    assert caught.value.details == ("status: Input should be 'complete' or 'incomplete'",)


def test_a_missing_folder_or_special_file_is_no_report(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in [("none.json", "No such file"), (".", "is a folder"), ("pipe.json", "is not a regular file")]:
        with pytest.raises(DataRejected, match=message):
            report.read(tmp_path / name)


def test_a_file_past_the_limit_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memaudit.report import reading

    monkeypatch.setattr(reading, "MAX_BYTES", 2**20)
    path = tmp_path / "report.json"
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(DataRejected, match="too large for a report: more than 1 MB"):
        report.read(path)


def test_importing_the_package_loads_no_renderer() -> None:
    heavy = ["jinja2", "rich", "pydantic", "numpy", "torch", "xml.etree"]
    code = f"import sys, memaudit.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
