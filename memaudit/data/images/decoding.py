"""Decode one image file safely, by written rules: those of torchvision's and timm's loaders, as far as they go.

Format: PNG, JPEG, WEBP, BMP, TIFF or netpbm by content, whatever the extension says. Size: at most 40 megapixels, known
from the header. Frames: the first. Orientation: as the pixels lie, or EXIF applied. Colour: palettes expanded, alpha
dropped (the colour beneath it stays), 16-bit samples cut at 255 or scaled by a stated depth, grey becomes three equal
channels for a three-channel network and colour becomes luma for a one-channel one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntFlag
from io import BytesIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.geometry import MAX_PIXELS
from memaudit.data.images.preprocess import Preprocess
from memaudit.text import clean

# Progressive files have about 10 scans; each of hundreds costs a pass over all of a large image's coefficients.
MAX_SCANS = 50
ORIENTATION = 0x0112  # the EXIF tag

# The plugins themselves, not Image.open: it would try other formats, and warns on stderr about sizes we judge here.
_OPENERS: dict[str, Callable[[BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
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
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
}


class Odd(IntFlag):
    """What a file has that training pipelines treat in ways of their own."""

    TURNED = 1  # an EXIF orientation other than upright
    DEEP = 2  # values above 255
    BEYOND_12_BITS = 4
    MISNAMED = 8  # the extension names another image format
    RESIZED = 16  # it has another size than the network


def decode(content: bytes, suffix: str, channels: int) -> Image.Image:
    """`decoded` as a pipeline does by default: with 1 (`L`) or 3 (`RGB`) channels."""
    return decoded(content, suffix, Preprocess((channels, 1, 1)))[0]


def decoded(content: bytes, suffix: str, preprocess: Preprocess) -> tuple[Image.Image, Odd]:
    """The image in `content`, a file whose name ends in `suffix`, before its geometry; and what is odd about it.

    Returns:
        With 1 (`L`) or 3 (`RGB`) channels, or floats in [0, 1] (`F`) of an image with more bits and a stated depth.

    Raises:
        Unreadable: it cannot be decoded.
        RowError: it is larger than an image may be, or has more bits than were stated.
    """
    image_format = sniff(content)
    odd = misnamed(image_format, suffix)
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
        odd |= oddities(image)
        upright = ImageOps.exif_transpose(image) if preprocess.exif == "apply" else image
        return to_channels(upright, preprocess.input_size[0], preprocess.bit_depth), odd
    except (Unreadable, RowError):
        raise
    except MemoryError:
        raise Unreadable(f"decoding this {image_format} takes more memory than its size justifies") from None
    except Exception as error:  # what Pillow raises on hostile bytes is an open list: struct.error, SyntaxError, ...
        raise Unreadable(f"{image_format} cannot be decoded ({clean(error, 120)})") from None


def misnamed(image_format: str, suffix: str) -> Odd:
    """Whether a name that ends in `suffix` names another format; none names no other."""
    return Odd.MISNAMED if suffix and SUFFIXES.get(suffix.lower()) != image_format else Odd(0)


def oddities(image: Image.Image) -> Odd:
    """What is odd about a picture, whatever file it came from."""
    odd = Odd.TURNED if image.getexif().get(ORIENTATION, 1) in range(2, 9) else Odd(0)
    if image.mode.startswith("I;16"):
        highest = int(np.asarray(image).max())
        odd |= (Odd.DEEP if highest > 255 else Odd(0)) | (Odd.BEYOND_12_BITS if highest > 4095 else Odd(0))
    return odd


def counted(odd: Sequence[Odd] | np.ndarray, **more: int) -> dict[str, int]:
    """How many have each oddity, by its name in small letters, and `more`; those that none has are left out."""
    found = np.array(odd, np.uint8)
    counts = {str(kind.name).lower(): int(np.count_nonzero(found & kind)) for kind in Odd} | more
    return {name: count for name, count in counts.items() if count}


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
    if content[:1] == b"P" and content[1:2] in b"123456" and content[2:3].isspace():
        return "PPM"
    raise Unreadable(_not_an_image(content))


def to_channels(image: Image.Image, channels: int, bit_depth: int | None = None) -> Image.Image:
    """`image` with 1 or 3 channels of 8 bits; or one of floats, where it has more bits and their depth is stated.

    Raises:
        Unreadable: its samples (32-bit integers, floats) have no declared range.
        RowError: a value is beyond `bit_depth`.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        if bit_depth is not None:
            highest, limit = int(values.max()), 2**bit_depth - 1
            if highest > limit:
                raise RowError(f"holds values to {highest}, more than {bit_depth} bits (--bit-depth)")
            return Image.fromarray((values / np.float32(limit)).astype(np.float32))
        image = Image.fromarray(np.minimum(values, 255).astype(np.uint8))
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
