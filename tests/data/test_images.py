"""One image file: every rule of `memaudit.data.images`, and every way to break it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from memaudit.data import Preprocess, read
from memaudit.data.compact import Row
from memaudit.data.decode import Decoder
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import Odd, decode, decoded
from memaudit.data.listing import FileListing
from memaudit.errors import DataRejected, ExitCode
from tests.data.test_read import SMALL, picture, write

# `decode` is called directly here; `read` keeps these off stderr, which the last test checks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of 67 bytes that claims a size and holds one pixel's worth of data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


FORMATS: list[tuple[str, str, dict[str, object]]] = [
    (".png", "PNG", {}),
    (".bmp", "BMP", {}),
    (".webp", "WEBP", {"lossless": True}),
    (".tif", "TIFF", {}),
    (".tiff", "TIFF", {"compression": "tiff_lzw"}),
    (".PNG", "PNG", {"compress_level": 0}),
]


@pytest.mark.parametrize(("suffix", "image_format", "options"), FORMATS)
def test_lossless_formats_give_the_pixels_that_went_in(
    suffix: str, image_format: str, options: dict[str, object]
) -> None:
    image = picture(3, (13, 7))
    assert np.array_equal(np.asarray(decode(encoded(image, image_format, **options), suffix, 3)), np.asarray(image))


@pytest.mark.parametrize(("suffix", "options"), [(".jpg", {}), (".JPEG", {"progressive": True}), (".jpe", {})])
def test_jpeg_gives_what_pillow_decodes(suffix: str, options: dict[str, object]) -> None:
    content = encoded(picture(1, (20, 30)), "JPEG", **options)
    assert np.array_equal(np.asarray(decode(content, suffix, 3)), np.asarray(Image.open(io.BytesIO(content))))


RED, HALF_RED, GREY = (200, 10, 30), (200, 10, 30, 0), 77


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, "PNG", **({"transparency": b"\xff\x00"} if transparent else {}))


@pytest.mark.parametrize(
    ("name", "content", "channels", "expected"),
    [
        ("rgb", encoded(Image.new("RGB", (4, 4), RED), "PNG"), 3, RED),
        ("alpha is dropped, its colour stays", encoded(Image.new("RGBA", (4, 4), HALF_RED), "PNG"), 3, RED),
        ("palette", palette(False), 3, RED),
        ("palette with transparency", palette(True), 3, RED),
        ("grey to three channels", encoded(Image.new("L", (4, 4), GREY), "PNG"), 3, (GREY,) * 3),
        ("grey with alpha", encoded(Image.new("LA", (4, 4), (GREY, 0)), "PNG"), 3, (GREY,) * 3),
        ("grey with alpha to one", encoded(Image.new("LA", (4, 4), (GREY, 0)), "PNG"), 1, GREY),
        ("one bit", encoded(Image.new("1", (4, 4), 1), "PNG"), 3, (255,) * 3),
        ("16 bit is cut at 255, as Pillow does", encoded(Image.new("I;16", (4, 4), 0x4D80), "PNG"), 3, (255,) * 3),
        ("16 bit to one channel", encoded(Image.new("I;16", (4, 4), GREY), "PNG"), 1, GREY),
        ("16 bit at the top", encoded(Image.new("I;16", (4, 4), 0xFFFF), "PNG"), 1, 255),
        ("rgb to luma", encoded(Image.new("RGB", (4, 4), RED), "PNG"), 1, 69),
        ("palette to luma", palette(True), 1, 69),
    ],
)
def test_colour_rules(name: str, content: bytes, channels: int, expected: int | tuple[int, ...]) -> None:
    image = decode(content, ".png", channels)
    assert image.mode == ("RGB" if channels == 3 else "L")
    assert image.getpixel((1, 2)) == expected, name


def test_16_bit_tiff_in_both_byte_orders_is_cut() -> None:
    for mode in ("I;16", "I;16B"):
        image = Image.frombytes(mode, (2, 1), struct.pack("<HH" if mode == "I;16" else ">HH", 0x12, 0xFEDC))
        assert np.asarray(decode(encoded(image, "TIFF"), ".tif", 1)).tolist() == [[0x12, 0xFF]]


def test_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    content = encoded(picture(2, (16, 16), "CMYK"), "JPEG")
    expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(np.asarray(decode(content, ".jpg", 3)), np.asarray(expected))


TRANSPOSED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TRANSPOSED)
@pytest.mark.parametrize(("suffix", "image_format"), [(".png", "PNG"), (".tif", "TIFF"), (".webp", "WEBP")])
def test_exif_orientation_is_applied_where_it_is_asked_for(orientation: int, suffix: str, image_format: str) -> None:
    image, exif = picture(4, (6, 3)), Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
    content = encoded(image, image_format, exif=exif, **options)
    turned = TRANSPOSED[orientation](np.asarray(image))
    by_pillow = image_format == "TIFF"  # which turns these, and only these, for everybody
    assert np.array_equal(np.asarray(decode(content, suffix, 3)), turned if by_pillow else np.asarray(image))
    upright, odd = decoded(content, suffix, Preprocess((3, 1, 1), exif="apply"))
    assert np.array_equal(np.asarray(upright), turned)
    assert (Odd.TURNED in odd) == (orientation != 1 and not by_pillow)


def test_a_stated_depth_keeps_every_value() -> None:
    content = encoded(Image.new("I;16", (2, 2), 1000), "PNG")
    image, odd = decoded(content, ".png", Preprocess((1, 2, 2), bit_depth=12))
    assert (np.asarray(image)[0, 0], odd) == (np.float32(1000) / np.float32(4095), Odd.DEEP)
    with pytest.raises(RowError, match="holds values to 1000, more than 9 bits"):
        decoded(content, ".png", Preprocess((1, 2, 2), bit_depth=9))


def test_what_a_file_holds_counts_and_not_its_name() -> None:
    content = encoded(picture(), "PNG")
    image, odd = decoded(content, ".JPEG", Preprocess((3, 8, 8)))
    assert np.array_equal(np.asarray(image), np.asarray(picture()))
    assert odd == Odd.MISNAMED


def test_the_first_frame_of_several_is_taken() -> None:
    first, second = picture(1), picture(2)
    for suffix, image_format in ((".tif", "TIFF"), (".webp", "WEBP")):
        options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
        content = encoded(first, image_format, save_all=True, append_images=[second], **options)
        assert np.array_equal(np.asarray(decode(content, suffix, 3)), np.asarray(first)), suffix


BMP_RLE = b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 8, 1, 4, 0, 0, 2, 0)

UNREADABLE: list[tuple[str, bytes, str]] = [
    ("empty.jpg", b"", "the file is empty"),
    ("page.jpg", b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    ("lower.png", b"<html>", "a web page"),
    ("lfs.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "holds EPS"),
    ("anim.png", b"GIF89a" + bytes(20), "holds GIF"),
    ("noise.png", b"\0\1\2\3", "not a PNG, JPEG, WEBP, BMP or TIFF"),
    ("half.jpg", encoded(picture(0, (64, 64)), "JPEG")[:900], "JPEG cannot be decoded"),
    ("progressive.jpg", encoded(picture(0, (64, 64)), "JPEG", progressive=True)[:900], "JPEG cannot be decoded"),
    ("half.png", encoded(picture(0, (64, 64)), "PNG")[:900], "PNG cannot be decoded"),
    ("half.webp", encoded(picture(0, (64, 64)), "WEBP")[:900], "WEBP cannot be decoded"),
    ("stub.webp", encoded(picture(), "WEBP")[:22], "truncated header"),
    ("half.bmp", encoded(picture(0, (64, 64)), "BMP")[:900], "BMP cannot be decoded"),
    ("half.tif", encoded(picture(0, (64, 64)), "TIFF")[:900], "TIFF cannot be decoded"),
    ("lzw.tif", encoded(picture(0, (64, 64)), "TIFF", compression="tiff_lzw")[:900], "TIFF cannot be decoded"),
    ("crc.png", encoded(picture(), "PNG").replace(b"IHDR\0\0\0\x08", b"IHDR\0\0\0\x09"), "PNG cannot be decoded"),
    ("lie.png", png_header(100, 100), "PNG cannot be decoded"),
    ("zero.png", png_header(0, 5), "PNG cannot be decoded|0 x 5"),
    ("float.tif", encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "mode 'F' have no known range"),
    ("int.tif", encoded(Image.new("I", (2, 2), 70000), "TIFF"), "mode 'I' have no known range"),
    ("rle.bmp", BMP_RLE + bytes(20), "run-length|BMP cannot be decoded"),
]

TOO_LARGE: list[tuple[str, bytes, str]] = [
    ("hundred.png", png_header(10_000, 10_000), "10000 x 10000 = 100 megapixels, the limit is 40"),
    ("terapixel.png", png_header(2**20, 2**20), "megapixels"),
    ("wide.png", png_header(40_000_001, 1), "megapixels"),
    (
        "hundred.bmp",
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHH6I", 40, 9999, 9999, 1, 24, *[0] * 6),
        "100 megapixels",
    ),
    ("vp8x.webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2, "268 megapixels"),
    (
        "vp8l.webp",
        b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + (2**28 - 1).to_bytes(4, "little") + bytes(8),
        "268 megapixels",
    ),
    ("vp8.webp", b"RIFF\x1e\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2 + bytes(8), "268 megapixels"),
    ("scans.jpg", encoded(picture(), "JPEG")[:-2] + b"\xff\xda\0\x08" * 200, "more than 50 JPEG scans"),
]


@pytest.mark.parametrize(("name", "content", "reason"), UNREADABLE)
def test_an_unreadable_image_is_left_out_and_told(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    good = write(tmp_path / "set/a/good.png", 5)
    (tmp_path / "set/a" / name).write_bytes(content)
    found = read(tmp_path / "set", preprocess=SMALL, num_classes=1)
    assert [e.source for e in found.examples] == ["a/good.png"]
    assert np.array_equal(found.pixels[0].permute(1, 2, 0), np.asarray(Image.open(good)))
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith(f"a/{name}: ")
    with pytest.raises(Unreadable, match=reason):
        decode(content, Path(name).suffix, 3)


@pytest.mark.parametrize(("name", "content", "reason"), TOO_LARGE)
def test_an_image_over_the_limit_rejects_the_set_from_its_header(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    write(tmp_path / "set/a/good.png")
    (tmp_path / "set/a" / name).write_bytes(content)
    with pytest.raises(DataRejected, match=reason) as caught:
        read(tmp_path / "set", preprocess=SMALL, num_classes=1)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert caught.value.details[0].startswith(f"a/{name}: ")


def test_the_hundred_megapixel_png_is_67_bytes() -> None:
    assert len(png_header(10_000, 10_000)) == 67


def test_an_image_at_the_limit_is_read() -> None:
    assert decode(encoded(Image.new("1", (8000, 5000)), "PNG"), ".png", 1).size == (8000, 5000)


def test_every_truncation_is_an_error_or_harmless() -> None:
    image = picture(0, (24, 24))
    for suffix, image_format in (
        (".png", "PNG"),
        (".jpg", "JPEG"),
        (".webp", "WEBP"),
        (".bmp", "BMP"),
        (".tif", "TIFF"),
    ):
        content = encoded(image, image_format)
        whole = np.asarray(decode(content, suffix, 3))
        for length in range(0, len(content), 7):
            try:
                part = decode(content[:length], suffix, 3)
            except Unreadable:
                continue
            assert np.array_equal(np.asarray(part), whole), (image_format, length)


def test_flipped_bytes_never_escape_as_other_errors() -> None:
    rng = np.random.default_rng(0)
    for suffix, image_format in (
        (".png", "PNG"),
        (".jpg", "JPEG"),
        (".webp", "WEBP"),
        (".bmp", "BMP"),
        (".tif", "TIFF"),
    ):
        content = encoded(picture(0, (16, 16)), image_format)
        for _ in range(150):
            broken = bytearray(content)
            for position in rng.integers(0, len(content), 3):
                broken[position] = int(rng.integers(0, 256))
            try:
                decode(bytes(broken), suffix, 3)
            except (Unreadable, RowError):
                continue


@pytest.mark.processes
def test_a_host_program_that_loads_truncated_images_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    write(tmp_path / "set/a/good.png")
    (tmp_path / "set/a/half.jpg").write_bytes(encoded(picture(0, (64, 64)), "JPEG")[:900])
    assert len(read(tmp_path / "set", preprocess=SMALL, num_classes=1).unreadable) == 1
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    write(tmp_path / "set/a/good.png")
    os.mkfifo(tmp_path / "set/a/pipe.png")
    files = (tmp_path / "set/a/pipe.png", tmp_path / "set/a/good.png")
    rows = (Row("x", 0, 0), Row("y", 0, 1))
    decoder = Decoder(FileListing("set", rows, (), files), rows, SMALL)
    refused, read_ = decoder.outcomes([0, 1])
    assert "not a regular file" in str(refused)
    assert not isinstance(read_, Exception)
    with pytest.raises(DataRejected, match=r"'a/pipe\.png' is not a regular file"):
        read(tmp_path / "set", preprocess=SMALL, num_classes=1)


def test_unsupported_image_files_are_told_not_ignored(tmp_path: Path) -> None:
    write(tmp_path / "set/a/good.png")
    picture().save(tmp_path / "set/a/anim.gif")
    (tmp_path / "set/a/readme.txt").write_text("not an image, not a row")
    found = read(tmp_path / "set", preprocess=SMALL, num_classes=1)
    assert found.unreadable == ("a/anim.gif: holds GIF; memaudit reads PNG, JPEG, WEBP, BMP and TIFF",)


def test_nothing_readable_gives_an_empty_set_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/empty.png").touch()
    found = read(tmp_path / "set", preprocess=Preprocess((3, 4, 4)), num_classes=1)
    assert (len(found), found.pixels.shape, len(found.unreadable)) == (0, (0, 3, 4, 4), 1)


def test_pillows_remarks_stay_off_stderr(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    content = encoded(picture(), "TIFF", compression="tiff_lzw")[:-5]
    with pytest.raises(Unreadable):
        decode(content, ".tif", 3)
    assert [str(w.message) for w in recwarn.list], "Pillow no longer remarks on this file; find one that it does"
    recwarn.clear()
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/a/odd.tif").write_bytes(content)
    assert len(read(tmp_path / "set", preprocess=SMALL, num_classes=1).unreadable) == 1
    assert not recwarn.list
