"""Tar shards: what webdataset wrote is read as webdataset reads it, and what is no such shard is refused."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from memaudit.data import ExampleSet, class_names_of, read
from memaudit.errors import DataRejected
from tests.data.test_images import encoded
from tests.data.test_read import SMALL, picture, safe

COUNT = 11


def shards(folder: Path, names: bool = False) -> list[Path]:
    """Three shards by webdataset itself; labels are numbers, or names in JSON."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%02d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(COUNT):
            label = number % 3
            sample: dict[str, object] = {
                "__key__": f"part/{number:04d}",
                "jpg": encoded(picture(number, (8, 8)), "JPEG"),
                "txt": "a caption",
            }
            sample |= {"json": {"label": "abc"[label]}} if names else {"cls": label}
            writer.write(sample)
    return sorted(folder.glob("*.tar"))


def test_samples_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    paths = shards(tmp_path / "set")
    found = read(tmp_path / "set", preprocess=SMALL, num_classes=3)
    theirs = (
        webdataset.WebDataset([str(p) for p in paths], shardshuffle=False)
        .decode("pil")
        .to_tuple("__key__", "jpg", "cls")
    )
    listed = list(theirs)
    assert len(found) == len(listed) == COUNT
    for example, pixels, (key, image, label) in zip(found.examples, found.pixels, listed, strict=True):
        assert (example.source.split("/", 1)[1], example.label) == (f"{key}.jpg", label)
        assert np.array_equal(pixels.numpy().transpose(1, 2, 0), np.asarray(image))
    assert [e.source.split("/")[0] for e in found.examples] == ["train-00.tar"] * 4 + ["train-01.tar"] * 4 + [
        "train-02.tar"
    ] * 3
    assert class_names_of(tmp_path / "set") == ()
    assert pickle.loads(pickle.dumps(found)).sha256 == found.sha256


def test_one_shard_and_named_labels(tmp_path: Path) -> None:
    first, *_ = shards(tmp_path / "set", names=True)
    found = read(first, preprocess=SMALL, num_classes=3, class_names=("a", "b", "c"))
    assert [(e.source, e.label) for e in found.examples] == [(f"part/{n:04d}.jpg", n % 3) for n in range(4)]
    listed = tmp_path / "list.txt"
    listed.write_text("part/0002.jpg\n0\n", encoding="utf-8")
    picked = read(listed, data=first, preprocess=SMALL, num_classes=3, class_names=("a", "b", "c"))
    assert [e.source for e in picked.examples] == ["part/0002.jpg", "part/0000.jpg"]


def test_class_folders_beside_a_tar_stay_class_folders(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/1.png").write_bytes(encoded(picture(0, (8, 8)), "PNG"))
    (tmp_path / "set/old.tar").touch()
    assert len(read(tmp_path / "set", preprocess=SMALL, num_classes=1)) == 1


IMAGE = encoded(picture(0, (8, 8)), "PNG")
Member = tuple[str, bytes] | tarfile.TarInfo


def tar(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return path


def special(kind: bytes, name: str = "b.png", target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def of(*members: Member) -> Callable[[Path], object]:
    return lambda path: tar(path, *members)


def cut(end: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tar(path, ("a.png", IMAGE), ("a.cls", b"0"), ("b.png", IMAGE), ("b.cls", b"0"))
        path.write_bytes(path.read_bytes()[:end])

    return write


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "climbs": (of(("../a.png", IMAGE), ("../a.cls", b"0")), r"'\.\./a\.png' leads outside"),
    "absolute": (of(("/etc/a.png", IMAGE)), "leads outside"),
    "symbolic link": (of(("a.png", IMAGE), ("a.cls", b"0"), special(tarfile.SYMTYPE)), "is no plain file"),
    "hard link": (of(special(tarfile.LNKTYPE, target="a.png")), "is no plain file"),
    "fifo": (of(special(tarfile.FIFOTYPE)), "is no plain file"),
    "device": (of(special(tarfile.CHRTYPE)), "is no plain file"),
    "no label": (of(("a.png", IMAGE)), "a: no label"),
    "no image": (of(("a.cls", b"0"), ("b.png", IMAGE), ("b.cls", b"0")), "1 of 2 samples rejected; a: no image"),
    "two images": (of(("a.png", IMAGE), ("a.jpg", IMAGE), ("a.cls", b"0")), "'a' has two images"),
    "two labels": (of(("a.png", IMAGE), ("a.cls", b"0"), ("a.cls", b"1")), "a second .cls"),
    "labels that differ": (
        of(("a.png", IMAGE), ("a.cls", b"0"), ("a.json", b'{"label": 1}')),
        "its .cls says 0, its .json 1",
    ),
    "not a class": (of(("a.png", IMAGE), ("a.cls", b"7")), "a: label 7 is no class"),
    "no number": (of(("a.png", IMAGE), ("a.cls", b"\xff")), "a: its label is no text"),
    "not JSON": (of(("a.png", IMAGE), ("a.json", b"[" * 100_000)), "a: its .json is none"),
    "empty": (of(), "holds no sample"),
    "nothing": (Path.touch, "is no whole tar file"),
    "a page": (lambda path: path.write_bytes(b"<html>" * 999), "is no whole tar file"),
    "compressed": (lambda path: tarfile.open(path, "w:gz").close(), "is no whole tar file"),
    "cut in an image": (cut(600), "cut short"),
    "cut between members": (cut(512 + 512 * (-(-len(IMAGE) // 512))), "cut short: it has no end"),
    "a name of 100 GB": (
        lambda p: p.write_bytes(header("x", tarfile.GNUTYPE_LONGNAME, 10**11) + b"x" * 512),
        "is no whole tar file",
    ),
    "a size past the end": (
        lambda p: p.write_bytes(header("a.png", tarfile.REGTYPE, 10**6) + bytes(1024)),
        "cut short in 'a.png'",
    ),
    "negative size": (
        lambda p: p.write_bytes(header("a.png", tarfile.REGTYPE, -512) + bytes(1024)),
        "has a negative size",
    ),
    "a folder of negative size": (
        lambda p: p.write_bytes(header("a", tarfile.DIRTYPE, -512) + bytes(1024)),
        "has a negative size",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_shard_is_refused(case: str, tmp_path: Path) -> None:
    write, message = REFUSED[case]
    path = tmp_path / "set.tar"
    write(path)
    with pytest.raises(DataRejected, match=message) as refused:
        read(path, preprocess=SMALL, num_classes=2)
    assert safe(str(refused.value))


def test_an_image_that_cannot_be_decoded_is_listed_and_a_shard_that_changes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "set.tar", ("a.png", IMAGE), ("a.cls", b"0"), ("b.png", b"<html>"), ("b.cls", b"1"))
    found = read(path, preprocess=SMALL, num_classes=2)
    assert [e.source for e in found.examples] == ["a.png"]
    assert found.unreadable == ("b.png: holds a web page, not an image; download it again",)
    monkeypatch.setattr("memaudit.data.ondemand.KEPT", 1)
    monkeypatch.setattr("memaudit.data.spill.SPILLED", 0)
    large: ExampleSet = read(path, preprocess=SMALL, num_classes=2)
    path.write_bytes(bytes(100))
    with pytest.raises(DataRejected, match=r"a\.png changed while it was audited \(the shard is shorter"):
        large.batch([0])
