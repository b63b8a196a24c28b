"""Decode one image file safely, by written rules.

Format: PNG, JPEG, WEBP, BMP or TIFF by content, and the extension agrees. Size: at most 40 megapixels, known from the
header. Frames: the first. Orientation: EXIF applied. Colour: palettes expanded, alpha dropped (the colour beneath it
stays, as training pipelines do), 16-bit samples keep their high byte, grey becomes three equal channels for a
three-channel network and colour becomes luma for a one-channel one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.geometry import MAX_PIXELS
from memaudit.text import clean

# Progressive files have about 10 scans; each of hundreds costs a pass over all of a large image's coefficients.
MAX_SCANS = 50

# The plugins themselves, not Image.open: it would try other formats, and warns on stderr about sizes we judge here.
_OPENERS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def decode(content: bytes, suffix: str, channels: int) -> Image.Image:
    """The image in `content`, a file whose name ends in `suffix`: upright, with 1 (`L`) or 3 (`RGB`) channels.

    Raises:
        Unreadable: it cannot be decoded.
        RowError: it is larger than an image may be.
    """
    image_format = sniff(content)
    if SUFFIXES.get(suffix.lower()) != image_format:
        raise Unreadable(f"holds {image_format} but is named '{clean(suffix)}'; rename it")
    try:
        if image_format == "WEBP":  # the only plugin that allocates the canvas before it tells the size
            _check_size(*_webp_size(content))
        if image_format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
            raise RowError(f"more than {MAX_SCANS} JPEG scans; no camera or encoder writes that")
        image = _OPENERS[image_format](BytesIO(content))
        _check_size(*image.size)
        if image_format == "BMP" and image.info.get("compression") in (1, 2):
            raise Unreadable("run-length coded BMP; save it as PNG")
        image.load()
        return to_channels(ImageOps.exif_transpose(image), channels)
    except (Unreadable, RowError):
        raise
    except MemoryError:
        raise Unreadable(f"decoding this {image_format} takes more memory than its size justifies") from None
    except Exception as error:  # what Pillow raises on hostile bytes is an open list: struct.error, SyntaxError, ...
        raise Unreadable(f"{image_format} cannot be decoded ({clean(error, 120)})") from None


def sniff(content: bytes) -> str:
    """The format of `content`, by its first bytes.

    Raises:
        Unreadable: none that memaudit reads; says which other kind it is, where that is plain.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content.startswith(b"BM"):
        return "BMP"
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    raise Unreadable(_not_an_image(content))


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """`image` with 1 or 3 channels of 8 bits.

    Raises:
        Unreadable: its samples (32-bit integers, floats) have no declared range.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise Unreadable(f"samples of mode '{image.mode}' have no known range; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # on the way to RGB, else Pillow warns
    if image.mode in ("PA", "LA", "La"):
        image = image.convert("RGBA")
    if image.mode in ("P", "RGBA", "CMYK", "YCbCr") and mode == "L":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise RowError(
            f"{width} x {height} = {megapixels:.0f} megapixels, the limit is {MAX_PIXELS // 10**6}; scale it down"
        )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height that a WEBP's first chunk declares (RFC 9649, sections 2.5 to 2.7)."""
    kind, head = content[12:16], content[20:30]
    if len(head) < 10:
        raise Unreadable("WEBP cannot be decoded (truncated header)")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _not_an_image(content: bytes) -> str:
    start = content[:512].lstrip().lower()
    if not content:
        return "the file is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "holds a web page, not an image; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the image; run: git lfs pull"
    for signature, name in ((b"%!ps", "EPS"), (b"gif8", "GIF"), (b"%pdf", "PDF")):
        if start.startswith(signature):
            return f"holds {name}; memaudit reads PNG, JPEG, WEBP, BMP and TIFF"
    return "not a PNG, JPEG, WEBP, BMP or TIFF file"
