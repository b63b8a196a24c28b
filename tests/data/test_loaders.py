"""No silent case: pixels and labels are those of plain torchvision and timm, whatever files look like."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_dataset, create_transform
from torchvision.datasets import ImageFolder

from memaudit.data.classes import Classes
from memaudit.data.folder import list_folder
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.images.worker import prepared

MODES = st.sampled_from(["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
SUFFIXES = {"CMYK": (".jpg", ".tif"), "I;16": (".png", ".tif")}
FOLDERS = ("c1", "c2", "c10", "Ä")


@st.composite
def files(draw: st.DrawFn) -> list[tuple[str, Image.Image, dict[str, object]]]:
    """Pictures of any mode, orientation and size, in folders whose natural and lexical orders differ."""
    found: dict[str, tuple[Image.Image, dict[str, object]]] = {}
    for number in range(draw(st.integers(4, 8))):
        mode = draw(MODES)
        suffix = draw(
            st.sampled_from(SUFFIXES.get(mode, (".png", ".PNG", ".tif", ".jpg" if mode in "RGBL" else ".png")))
        )
        height, width = draw(st.integers(3, 24)), draw(st.integers(3, 24))
        pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), dtype=np.uint8)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * draw(st.sampled_from([1, 16, 257])))
        else:
            image = Image.fromarray(pixels).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        folder = FOLDERS[number % 4]
        name = f"{folder}/img{draw(st.integers(1, 30))}{suffix}"
        # timm's key takes no notice of case: names that differ in it alone stand as the file system lists them.
        if name.lower() not in {other.lower() for other in found}:
            found[name] = image, {"exif": exif}
    return [(name, *rest) for name, rest in found.items()]


@settings(max_examples=15, deadline=None)
@given(
    files(),
    st.sampled_from(["torchvision", "timm"]),
    st.sampled_from([1.0, 0.875]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_rows_labels_and_pixels_are_the_loaders(
    written: list[tuple[str, Image.Image, dict[str, object]]], order: str, crop: float, interpolation: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, image, options in written:
            (root / name).parent.mkdir(exist_ok=True)
            image.save(root / name, **options)  # type: ignore[arg-type]
        transform = create_transform((3, 8, 8), crop_pct=crop, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3)
        if order == "torchvision":
            theirs = ImageFolder(scratch)
            samples, images = theirs.samples, [transform(theirs[i][0]) for i in range(len(theirs))]
        else:
            dataset = create_dataset("", root=scratch, transform=transform)
            samples, images = dataset.reader.samples, [dataset[i][0] for i in range(len(dataset))]
        ours = list_folder(root, Classes(), "lexical" if order == "torchvision" else "natural", order)
        assert [(r.name, r.label) for r in ours.rows] == [(os.path.relpath(p, root), y) for p, y in samples]
        preprocess = Preprocess((3, 8, 8), crop_pct=crop, interpolation=interpolation, exact=True)
        for row, file, image in zip(ours.rows, ours.files, images, strict=True):
            pixels, _ = prepared(file.read_bytes(), file.suffix, preprocess)
            assert np.array_equal(pixels, (image * 255).round().numpy().astype(np.uint8)), row.name
