"""Arrays from a file: no value is read that the headers did not announce, none passes the network does not take."""

from __future__ import annotations

import io
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from memaudit.data import Preprocess, from_arrays, npz, read
from memaudit.errors import DataRejected, ExitCode
from tests.data.test_read import SMALL

X = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 1, 0])
FLOATS = np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32)
GREY = Preprocess((1, 8, 8))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("y_dtype", [np.int64, np.int32, np.uint8, ">i4"])
def test_uint8_nhwc_is_read(compressed: bool, y_dtype: str) -> None:
    save = np.savez_compressed if compressed else np.savez
    save("a.npz", x=X, y=Y.astype(y_dtype), id=np.array(list("abcde")), true_label=Y[::-1])
    found = read("a.npz", preprocess=SMALL, num_classes=3)
    assert torch.equal(found.pixels, torch.from_numpy(X).permute(0, 3, 1, 2))
    assert found.labels.tolist() == Y.tolist()
    assert [e.true_label for e in found.examples] == Y[::-1].tolist()
    assert [(e.source, e.index, e.declared_id) for e in found.examples][:2] == [("array", 0, "a"), ("array", 1, "b")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_float_nchw_is_read_and_kept(dtype: str) -> None:
    x = FLOATS.astype(dtype)
    np.savez("a.npz", x=x, y=Y)
    found = read("a.npz", preprocess=SMALL, num_classes=3)
    assert np.array_equal(found.pixels.numpy(), x)
    assert found.batch([0]).dtype == torch.float32


def test_fortran_order_is_read() -> None:
    np.savez("a.npz", x=np.asfortranarray(X), y=Y)
    assert torch.equal(read("a.npz", preprocess=SMALL, num_classes=3).pixels, torch.from_numpy(X).permute(0, 3, 1, 2))


def test_grey_images_need_no_channel_axis() -> None:
    np.savez("a.npz", x=X[..., 0], y=Y)
    assert torch.equal(read("a.npz", preprocess=GREY, num_classes=3).pixels[:, 0], torch.from_numpy(X[..., 0].copy()))


def test_images_of_the_networks_size_are_taken_as_they_are_and_others_go_through_the_geometry() -> None:
    from PIL import Image
    from timm.data import create_transform

    np.savez("a.npz", x=X, y=Y)
    kept = read("a.npz", preprocess=Preprocess((3, 8, 8), crop_pct=0.875), num_classes=3)
    assert torch.equal(kept.pixels, torch.from_numpy(X).permute(0, 3, 1, 2))
    resized = read("a.npz", preprocess=Preprocess((3, 12, 12), crop_pct=0.875), num_classes=3)
    transform = create_transform((3, 12, 12), interpolation="bicubic", crop_pct=0.875, normalize=False)
    for i in range(5):
        assert torch.equal(resized.pixels[i], transform(Image.fromarray(X[i])))
    assert resized.sha256 == kept.sha256


def test_identity_is_of_dtype_shape_and_values() -> None:
    first = from_arrays(X, Y, preprocess=SMALL, num_classes=3)
    assert len({e.id for e in first.examples}) == 5
    again = from_arrays(np.ascontiguousarray(X[::-1]), Y[::-1], preprocess=SMALL, num_classes=3)
    assert [e.id for e in again.examples] == [e.id for e in first.examples][::-1]
    grey = from_arrays(X[..., :1], Y, preprocess=GREY, num_classes=3)
    assert grey.examples[0].id != from_arrays(X[..., 0], Y, preprocess=GREY, num_classes=3).examples[0].id


def nan(position: int) -> np.ndarray:
    x = FLOATS.copy()
    x[position, 1, 2, 3] = np.nan
    return x


VALUES = [
    ("zero rows", {"x": X[:0], "y": Y[:0]}, "x has zero rows"),
    ("a number", {"x": np.uint8(3), "y": Y}, "x has zero rows"),
    ("no y", {"x": X}, "no array 'y'"),
    ("no x", {"y": Y}, "no array 'x'"),
    ("unknown", {"x": X, "y": Y, "z": Y}, r"unknown member 'z\.npy'"),
    ("objects", {"x": X, "y": np.array([{}] * 5)}, r"y: dtype object is not allowed"),
    ("object images", {"x": np.array([X[0], None], dtype=object), "y": Y[:2]}, "x: dtype object is not allowed"),
    ("records", {"x": X, "y": np.zeros(5, [("a", "i4")])}, r"y: dtype .* is not allowed"),
    ("complex", {"x": FLOATS.astype(np.complex64), "y": Y}, "dtype complex64 is not allowed"),
    ("dates", {"x": X, "y": Y.astype("datetime64[s]")}, "dtype datetime64.* is not allowed"),
    ("int images", {"x": X.astype(np.int64), "y": Y}, "x is int64; give uint8, uint16, or floats"),
    ("few bits of 16", {"x": X.astype(np.uint16), "y": Y}, "uint16 x has no value above 255: these are fewer than 16"),
    ("bool images", {"x": X > 9, "y": Y}, "x is bool; give uint8"),
    ("text images", {"x": X.astype(str), "y": Y}, "x is <U3; give uint8"),
    ("float labels", {"x": X, "y": Y.astype(float)}, "y is float64; labels are integers"),
    ("bool labels", {"x": X, "y": Y > 0}, "y is bool; labels are integers"),
    ("text labels", {"x": X, "y": Y.astype(str)}, "y is <U.*; labels are integers"),
    ("one-hot labels", {"x": X, "y": np.eye(5, dtype=int)}, r"y has shape \(5, 5\) for 5 images"),
    ("few labels", {"x": X, "y": Y[:4]}, r"y has shape \(4,\) for 5 images"),
    ("few true labels", {"x": X, "y": Y, "true_label": Y[:4]}, r"true_label has shape \(4,\)"),
    ("few ids", {"x": X, "y": Y, "id": Y[:4]}, "4 values in id for 5 images"),
    ("id table", {"x": X, "y": Y, "id": np.eye(5, dtype=int)}, r"id is int64 of shape \(5, 5\)"),
    ("same ids", {"x": X, "y": Y, "id": Y}, "2 of 5 rows rejected; row 3: its id is already the id of row 1"),
    ("label -1", {"x": X, "y": Y - 1}, "2 of 5 rows rejected; row 0: label -1 is no class"),
    ("label -100", {"x": X, "y": Y - 100}, "label -100 is no class"),
    (
        "label 10",
        {"x": X, "y": Y + 8},
        "1 of 5 rows rejected; row 2: label 10 is no class; the model's labels are 0 to 9",
    ),
    ("true label", {"x": X, "y": Y, "true_label": Y + 10}, "5 of 5 rows rejected"),
    ("float nhwc", {"x": FLOATS.transpose(0, 2, 3, 1), "y": Y}, r"float x has shape \(5, 8, 8, 3\)"),
    ("uint8 nchw", {"x": X.transpose(0, 3, 1, 2), "y": Y}, r"shape \(5, 3, 8, 8\), channels first"),
    ("four channels", {"x": np.zeros((5, 8, 8, 4), np.uint8), "y": Y}, "the network takes 3 channels"),
    ("grey for colour", {"x": X[..., 0], "y": Y}, "the network takes 3 channels"),
    ("flat", {"x": X.reshape(5, -1), "y": Y}, "the network takes 3 channels"),
    ("flat floats", {"x": FLOATS.reshape(5, -1), "y": Y}, r"float x has shape \(5, 192\)"),
    ("no pixels", {"x": np.zeros((5, 0, 8, 3), np.uint8), "y": Y}, r"images of shape \(3, 0, 8\)"),
    ("other size", {"x": FLOATS[..., :4, :4], "y": Y}, r"the network takes \(N, 3, 8, 8\)"),
    ("NaN pixel", {"x": nan(3), "y": Y}, "1 of 5 rows rejected; row 3: a pixel is NaN or infinite"),
    ("infinite", {"x": np.full_like(FLOATS, np.inf), "y": Y}, "a pixel is NaN or infinite"),
    ("0..255", {"x": FLOATS * 255, "y": Y}, r"row 0: values from .* outside \[0, 1\]"),
    ("normalised", {"x": FLOATS - 0.5, "y": Y}, r"outside \[0, 1\]"),
]


@pytest.mark.parametrize(("name", "arrays", "message"), VALUES, ids=[c[0] for c in VALUES])
def test_arrays_the_network_does_not_take_are_refused(name: str, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("a.npz", **arrays)
    with pytest.raises(DataRejected, match=message) as caught:
        read("a.npz", preprocess=SMALL, num_classes=10)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert str(caught.value).startswith("a.npz: ")


@pytest.mark.parametrize(
    ("x", "hint"),
    [
        (FLOATS.transpose(0, 2, 3, 1), "transpose"),
        (FLOATS * 255, "divide it by 255"),
        (FLOATS - 0.5, "undo its normalisation"),
    ],
)
def test_the_hint_names_the_likely_cause(x: np.ndarray, hint: str) -> None:
    with pytest.raises(DataRejected) as caught:
        from_arrays(x, Y, preprocess=SMALL, num_classes=3)
    assert hint in caught.value.hint


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(descr: str, shape: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def with_x(x: bytes) -> bytes:
    return archive(x=x, y=npy(Y))


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as member:
        member.write(header("'|u1'", "(2000, 224, 224, 3)"))
        for _ in range(2000):
            member.write(bytes(224 * 224 * 3))
    return buffer.getvalue()


def double() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("y.npy", npy(Y))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("y.npy", npy(Y))
    return buffer.getvalue()


def named(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, npy(Y))
    return buffer.getvalue()


def method(kind: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        file.writestr("x.npy", npy(X))
    return buffer.getvalue()


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def directory_lies(size: int) -> bytes:
    """Both headers of `x` claim `size` bytes."""
    true = struct.pack("<I", len(npy(X)))
    return patched(with_x(npy(X)), true, struct.pack("<I", size))


def flagged(bit: int) -> bytes:
    """The directory says of `x` that it is encrypted or patched."""
    whole = bytearray(WHOLE)
    whole[whole.index(b"PK\x01\x02") + 8] |= 1 << bit
    return bytes(whole)


WHOLE = with_x(npy(X))
FILES: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty", lambda: b"", "is not a whole .npz file"),
    ("web page", lambda: b"<!DOCTYPE html>", "is not a whole .npz file"),
    ("an npy", lambda: npy(X), "is not a whole .npz file"),
    ("half", lambda: WHOLE[: len(WHOLE) // 2], "is not a whole .npz file"),
    ("no members", lambda: archive(), "no array 'x'"),
    ("bomb", bomb, "a zip bomb"),
    *((f"flag {bit}", lambda bit=bit: flagged(bit), "is encrypted or compressed") for bit in (0, 5, 6)),
    ("twice", double, "'y' is there twice"),
    ("climbs", lambda: named("../x.npy"), r"unknown member '\.\./x\.npy'"),
    ("absolute", lambda: named("/x.npy"), "unknown member '/x.npy'"),
    ("not an array", lambda: named("x"), "unknown member 'x'"),
    ("folder", lambda: named("x.npy/"), "unknown member"),
    ("escape", lambda: named("\x1b[31m.npy"), r"unknown member '\\x1b\[31m\.npy'"),
    ("bzip2", lambda: method(zipfile.ZIP_BZIP2), "compressed in an unusual way"),
    ("lzma", lambda: method(zipfile.ZIP_LZMA), "compressed in an unusual way"),
    ("flipped byte", lambda: patched(WHOLE, X.tobytes()[:20], bytes(20)), "is not a whole .npz file .*CRC"),
    ("directory too large", lambda: directory_lies(2**31), "the header says|not a whole"),
    ("directory too small", lambda: directory_lies(200), "CRC"),
    ("pickle", lambda: with_x(b"cos\nsystem\n(S'touch canary'\ntR."), "x: not a .npy array"),
    ("empty member", lambda: with_x(b""), "x: not a .npy array"),
    ("version 2", lambda: with_x(header("'|u1'", "(5,)", bytes(5), b"\x02\x00")), "version 1.0"),
    ("header past the end", lambda: with_x(b"\x93NUMPY\x01\x00\xff\xff{}"), "broken .npy header"),
    ("no dictionary", lambda: with_x(b"\x93NUMPY\x01\x00\x02\x00[]"), "broken .npy header"),
    ("code", lambda: with_x(header("__import__('os').system('touch canary')", "(5,)")), "broken .npy header"),
    ("deep", lambda: with_x(b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000), "broken .npy header"),
    ("python 2", lambda: with_x(header("'|u1'", "(5L,)", bytes(5))), "broken .npy header"),
    (
        "more than there is",
        lambda: with_x(header("'|u1'", "(1000000000000, 8, 8, 3)", bytes(9))),
        "the header says 192000000000000 bytes",
    ),
    ("less than there is", lambda: with_x(header("'|u1'", "(1, 8, 8, 3)", bytes(999))), "the header says 192 bytes"),
    ("negative", lambda: with_x(header("'|u1'", "(-1, 8, 8, 3)", bytes(192))), "the header says"),
    ("negative twice", lambda: with_x(header("'|u1'", "(-1, -1)", bytes(1))), "the header says"),
    ("endless and empty", lambda: with_x(header("'|u1'", f"({2**70}, 0)")), "is not one an array can have"),
    (
        "object",
        lambda: with_x(header("'|O'", "(5,)", b"cos\nsystem\n(S'touch canary'\ntR.")),
        "dtype object is not allowed",
    ),
    ("void", lambda: with_x(header("'|V9'", "(5,)", bytes(45))), "is not allowed"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES, ids=[c[0] for c in FILES])
def test_a_broken_or_hostile_file_is_refused_quickly(name: str, content: Callable[[], bytes], message: str) -> None:
    Path("a.npz").write_bytes(content())
    start = time.monotonic()
    with pytest.raises(DataRejected, match=message) as caught:
        read("a.npz", preprocess=SMALL, num_classes=10)
    assert time.monotonic() - start < 5
    assert caught.value.exit_code == ExitCode.REJECTED
    assert str(caught.value).startswith("a.npz")
    assert caught.value.message.isprintable()
    assert not Path("canary").exists()


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(WHOLE)
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        Path("a.npz").write_bytes(content)
        try:
            found = read("a.npz", preprocess=SMALL, num_classes=10)
        except DataRejected:
            continue
        assert torch.equal(found.pixels, torch.from_numpy(X).permute(0, 3, 1, 2))
        assert found.labels.tolist() == Y.tolist()


def test_a_large_honest_compressed_array_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "SMALL", 100)
    np.savez_compressed("a.npz", x=X, y=Y)
    assert len(read("a.npz", preprocess=SMALL, num_classes=3)) == 5
    np.savez_compressed("a.npz", x=np.zeros((400, 8, 8, 3), np.uint8), y=np.zeros(400, int))
    with pytest.raises(DataRejected, match="zip bomb"):
        read("a.npz", preprocess=SMALL, num_classes=3)


def test_arrays_over_the_memory_budget_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from memaudit.data import decode

    np.savez("a.npz", x=X, y=Y)
    monkeypatch.setattr(decode, "MEMORY_BUDGET", 500)
    with pytest.raises(DataRejected, match="GiB of arrays, the limit is"):
        read("a.npz", preprocess=SMALL, num_classes=3)


def test_crc_is_checked_also_for_stored_members() -> None:
    content = bytearray(WHOLE)
    at = content.index(X.tobytes()[:50])
    content[at] ^= 1
    assert zlib.crc32(content) != zlib.crc32(WHOLE)
    Path("a.npz").write_bytes(content)
    with pytest.raises(DataRejected, match="CRC"):
        read("a.npz", preprocess=SMALL, num_classes=3)
