"""Files whose pixels loaders and viewers see differently, beside plain torchvision on the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.real_inputs.harness import Case, Expected, Ran, scan
from tests.real_inputs.pictures import CODE, Fresh, fit, pictures, write_model

FLAGGED, TRAIN = 12, 120
NAMES = ("ant", "bee", "cat")
MODEL = ("model.safetensors", "--adapter", CODE, "--input-size", "3,16,16")
DATA = ("--flagged", "flagged", "--reference", "val")
Saver = Callable[[Path, int, np.ndarray], None]


def write(root: Path, saver: Saver) -> None:
    """The pictures as `saver` writes them: `flagged/`, `train/` (which holds the flagged too) and `val/`."""
    x, truth = pictures()
    for n in (*range(TRAIN), *range(300, 440)):
        label = int(truth[n]) if n >= FLAGGED else (int(truth[n]) + 1) % 3
        for part in ("flagged", "train") if n < FLAGGED else ("train",) if n < TRAIN else ("val",):
            place = root / part / NAMES[label]
            place.mkdir(parents=True, exist_ok=True)
            saver(place, n, x[n])


Transform = Callable[[Image.Image], torch.Tensor]
TENSOR: Transform = transforms.ToTensor()


def by_torchvision(saver: Saver, transform: Transform = TENSOR) -> Callable[[Path], None]:
    """Trained by `ImageFolder` and `transform` on the files."""

    def build(root: Path) -> None:
        write(root, saver)
        dataset = ImageFolder(str(root / "train"), transform)
        write_model(root, fit(torch.stack([image for image, _ in dataset]), dataset.targets))

    return build


def by_own(saver: Saver, load: Callable[[Path], torch.Tensor]) -> Callable[[Path], None]:
    """Trained on what the user's own loader makes of the files."""

    def build(root: Path) -> None:
        write(root, saver)
        samples = ImageFolder(str(root / "train")).samples
        write_model(root, fit(torch.stack([load(Path(p)) for p, _ in samples]), [y for _, y in samples], network=Fresh))

    return build


def as_torchvision(ran: Ran, transform: Transform = TENSOR) -> None:
    """Every flagged file gets the prediction that plain torchvision gives it, and the label it was trained with."""
    dataset = ImageFolder(str(ran.folder / "flagged"), transform)
    module = network(ran.folder)
    plain = {
        str(Path(path).relative_to(ran.folder / "flagged")): int(module(dataset[i][0][None]).argmax())
        for i, (path, _) in enumerate(dataset.samples)
    }
    found = {f.example.source: f.before.prediction for f in ran.report.findings}
    assert found == plain, f"{sum(found[k] != plain[k] for k in plain)} predictions differ; {ran.warned('MEM914')}"
    assert all(f.fitted for f in ran.report.findings)


def network(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    from tests.real_inputs.pictures import Net

    module = Net()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    return module.eval()


def all_fitted(ran: Ran) -> None:
    fitted = sum(f.fitted for f in ran.report.findings)
    assert fitted == FLAGGED, f"{fitted} of {FLAGGED} fitted"


def told(code: str, words: str, transform: Transform = TENSOR) -> Callable[[Ran], None]:
    def holds(ran: Ran) -> None:
        as_torchvision(ran, transform)
        assert words in ran.warned(code), ran.report.warnings

    return holds


def turned(place: Path, n: int, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1 + n % 8
    Image.fromarray(pixels).save(place / f"{n}.png", exif=exif)


def suffix(name: str, **options: object) -> Saver:
    return lambda place, n, pixels: Image.fromarray(pixels).save(place / f"{n}{name}", **options)  # type: ignore[arg-type]


def mode(kind: str) -> Saver:
    def saver(place: Path, n: int, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).convert(kind).save(place / f"{n}.{'jpg' if kind == 'CMYK' else 'png'}")

    return saver


def misnamed(place: Path, n: int, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(place / f"{n}.JPEG", "PNG")


def deep(bits: int) -> Saver:
    """A grey 16-bit PNG whose values use so many bits."""

    def saver(place: Path, n: int, pixels: np.ndarray) -> None:
        grey = pixels.astype(np.float64).mean(2) / 255
        Image.fromarray((grey * (2**bits - 1)).astype(np.uint16)).save(place / f"{n}.png")

    return saver


def scaled(bits: int) -> Callable[[Path], torch.Tensor]:
    return lambda path: torch.tensor(np.array(Image.open(path)).astype(np.float32) / (2**bits - 1)).expand(3, -1, -1)


def upright(path: Path) -> torch.Tensor:
    return transforms.ToTensor()(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def several(name: str, **options: object) -> Saver:
    """A file of two frames: what cameras call MPO, pages of a TIFF, an animation; the loaders take the first."""

    def saver(place: Path, n: int, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels)
        image.save(place / f"{n}{name}", save_all=True, append_images=[image.rotate(90)], **options)  # type: ignore[arg-type]

    return saver


def see_through(place: Path, n: int, pixels: np.ndarray) -> None:
    """A palette in which one colour is transparent: the colour beneath it stays."""
    Image.fromarray(pixels).quantize(64).save(place / f"{n}.png", transparency=n % 64)


def beside(place: Path, n: int, pixels: np.ndarray) -> None:
    """What file managers leave among pictures."""
    Image.fromarray(pixels).save(place / f"{n}.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (place / name).write_bytes(b"x")


def larger(place: Path, n: int, pixels: np.ndarray) -> None:
    """A photograph that is wider than high."""
    Image.fromarray(pixels).resize((44, 32), Image.Resampling.BICUBIC).save(place / f"{n}.png")


def unsettled(ran: Ran) -> None:
    """The reader learns what each way gives, and of the options."""
    said = ran.warned("MEM910")
    assert "center crop 0.875 bilinear" in said, ran.report.warnings
    assert f"{FLAGGED}/{FLAGGED}" in said
    assert "--crop-mode" in said


SQUASHED = transforms.Compose([transforms.Resize((16, 16)), TENSOR])
CROPPED = transforms.Compose([transforms.Resize(18), transforms.CenterCrop(16), TENSOR])
PLAIN = Expected(0, holds=as_torchvision)
CASES = [
    Case(
        "pixels",
        "orientation tags, ignored in training",
        by_torchvision(turned),
        scan(*MODEL, *DATA, "--exif", "ignore"),
        Expected(0, holds=told("MEM911", "have an orientation tag")),
    ),
    Case(
        "pixels",
        "orientation tags, nobody says",
        by_torchvision(turned),
        scan(*MODEL, *DATA),
        Expected(0, holds=told("MEM911", "have an orientation tag")),
    ),
    Case(
        "pixels",
        "orientation tags, applied in training and said",
        by_own(turned, upright),
        scan(*MODEL, *DATA, "--exif", "apply"),
        Expected(0, holds=all_fitted),
    ),
    Case(
        "pixels",
        "orientation tags, applied in training, nobody says",
        by_own(turned, upright),
        scan(*MODEL, *DATA),
        Expected(0, holds=all_fitted),
    ),
    *(
        Case("pixels", f"files called {name}", by_torchvision(suffix(name)), scan(*MODEL, *DATA), PLAIN)
        for name in (".bmp", ".webp", ".ppm", ".tiff", ".PNG")
    ),
    Case("pixels", "JPEG", by_torchvision(suffix(".jpg", quality=90)), scan(*MODEL, *DATA), PLAIN),
    *(
        Case("pixels", f"mode {kind}", by_torchvision(mode(kind)), scan(*MODEL, *DATA), PLAIN)
        for kind in ("P", "RGBA", "L", "LA", "CMYK")
    ),
    *(
        Case("pixels", name, by_torchvision(saver), scan(*MODEL, *DATA), PLAIN)
        for name, saver in (
            ("a camera's MPO named .jpg", several(".jpg", format="MPO", quality=95)),
            ("pages of a TIFF", several(".tif")),
            ("an animated WebP", several(".webp", lossless=True)),
            ("a progressive JPEG", suffix(".jpeg", quality=95, progressive=True)),
            ("a palette with a transparent colour", see_through),
            ("files of file managers beside", beside),
        )
    ),
    Case(
        "pixels",
        "PNG files named .JPEG",
        by_torchvision(misnamed),
        scan(*MODEL, *DATA),
        Expected(0, holds=told("MEM911", "named as another image format")),
    ),
    Case("pixels", "16-bit files that hold 8 bits", by_torchvision(deep(8)), scan(*MODEL, *DATA), PLAIN),
    Case(
        "pixels",
        "12 bits in 16, scaled in training and said",
        by_own(deep(12), scaled(12)),
        scan(*MODEL, *DATA, "--bit-depth", "12"),
        Expected(0, holds=all_fitted),
    ),
    Case(
        "pixels",
        "16 bits, scaled in training and said",
        by_own(deep(16), scaled(16)),
        scan(*MODEL, *DATA, "--bit-depth", "16"),
        Expected(0, holds=all_fitted),
    ),
    Case(
        "pixels",
        "12 bits in 16, nobody says",
        by_own(deep(12), scaled(12)),
        scan(*MODEL, *DATA),
        Expected(0, holds=all_fitted),
    ),
    Case(
        "pixels",
        "larger pictures, squashed in training, nobody says",
        by_torchvision(larger, SQUASHED),
        scan(*MODEL, *DATA),
        Expected(0, holds=told("MEM914", "--crop-mode", SQUASHED)),
    ),
    Case(
        "pixels",
        "larger pictures, cropped in training, which too few labels tell",
        by_torchvision(larger, CROPPED),
        scan(*MODEL, *DATA),
        Expected(0, holds=unsettled),
    ),
    Case(
        "pixels",
        "larger pictures, squashed in training and said",
        by_torchvision(larger, SQUASHED),
        scan(*MODEL, *DATA, "--crop-mode", "squash", "--crop-pct", "1", "--interpolation", "bilinear"),
        Expected(0, holds=lambda ran: as_torchvision(ran, SQUASHED)),
    ),
    Case(
        "pixels",
        "more bits than were said",
        by_own(deep(16), scaled(16)),
        scan(*MODEL, *DATA, "--bit-depth", "12"),
        Expected(3, says="more than 12 bits"),
    ),
]
