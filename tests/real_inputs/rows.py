"""Lists of rows: whose numbering they follow, and what else the tables that people save say."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset
from torch import nn
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.real_inputs.harness import Case, Expected, Ran, scan
from tests.real_inputs.pictures import CODE, fit, pictures, save, write_model

FLAGGED, TRAIN = 12, 120
MODEL = ("model.safetensors", "--adapter", CODE, "--input-size", "3,16,16")
NAMES = ("ant", "bee", "cat")


def write_folder(
    root: Path, file: Callable[[int], str] = lambda n: f"img{n}.png", names: Sequence[str] = NAMES, rows: int = TRAIN
) -> list[str]:
    """`train/` with the first labels changed, `val/`; the changed files' names relative to `train`."""
    x, truth = pictures()
    changed = []
    for n in range(rows):
        label = int(truth[n]) if n >= FLAGGED else (int(truth[n]) + 1) % 3
        name = f"{names[label]}/{file(n)}"
        save(root / "train" / name, x[n])
        changed += [name] if n < FLAGGED else []
    for n in range(300, 400):
        save(root / "val" / names[int(truth[n])] / f"v{n}.png", x[n])
    return changed


def torchvision_run(root: Path) -> tuple[ImageFolder, nn.Module]:
    """A network trained by torchvision's loader on `train/`."""
    dataset = ImageFolder(str(root / "train"), transforms.ToTensor())
    module = fit(torch.stack([dataset[i][0] for i in range(len(dataset))]), dataset.targets)
    write_model(root, module)
    return dataset, module


def positions(dataset: ImageFolder, root: Path, names: Sequence[str]) -> list[int]:
    """Rows of the loader that hold `names`."""
    place = {str(Path(path).relative_to(root / "train")): i for i, (path, _) in enumerate(dataset.samples)}
    return [place[name] for name in names]


def all_fitted(ran: Ran) -> None:
    """Every flagged row was the right file: the network gives each changed label."""
    fitted = sum(f.fitted for f in ran.report.findings)
    assert (len(ran.report.findings), fitted) == (FLAGGED, FLAGGED), f"{fitted} of {len(ran.report.findings)} fitted"


def by_names(root: Path) -> None:
    changed = write_folder(root)
    torchvision_run(root)
    (root / "flagged.txt").write_text("".join(f"{name}\n" for name in changed))


def padded_indices(root: Path) -> None:
    changed = write_folder(root, lambda n: f"img{n:04d}.png")
    dataset, _ = torchvision_run(root)
    np.save(root / "flagged.npy", np.array(positions(dataset, root, changed)))


def listed(flagged: str, *more: str) -> tuple[str, ...]:
    return scan(*MODEL, "--data", "train", "--flagged", flagged, "--reference", "val", *more)


def saved(
    how: Callable[[Path, list[str], list[int], ImageFolder], object],
    file: Callable[[int], str] = lambda n: f"img{n}.png",
    loader: str = "torchvision",
) -> Callable[[Path], None]:
    """A network trained by a loader, and what `how` writes of the changed files and of their rows there."""

    def build(root: Path) -> None:
        changed = write_folder(root, file)
        if loader == "torchvision":
            dataset, _ = torchvision_run(root)
            how(root, changed, positions(dataset, root, changed), dataset)
        else:
            dataset = create_dataset("", root=str(root / "train"), transform=transforms.ToTensor())
            samples = dataset.reader.samples
            module = fit(torch.stack([dataset[i][0] for i in range(len(dataset))]), [y for _, y in samples])
            write_model(root, module)
            place = {str(Path(p).relative_to(root / "train")): i for i, (p, _) in enumerate(samples)}
            how(root, changed, [place[name] for name in changed], dataset)

    return build


def npy(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
    np.save(root / "flagged.npy", np.array(rows))


def argwhere(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
    np.save(root / "flagged.npy", np.array(rows)[:, None])


def mask(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
    np.save(root / "flagged.npy", np.isin(np.arange(len(dataset)), rows))


def labels_of(root: Path, dataset: ImageFolder) -> list[int]:
    return [y for _, y in (dataset.samples if hasattr(dataset, "samples") else dataset.reader.samples)]


def cleanlab(names: bool) -> Callable[..., None]:
    """`CleanLearning.find_label_issues` as pandas saves it, with the files' names in a column or without."""

    def how(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
        paths = [str(Path(p).relative_to(root / "train")) for p, _ in dataset.samples]
        head = ",is_label_issue,label_quality,given_label,predicted_label" + (",filename" if names else "")
        lines = [
            f"{i},{i in rows},0.5,{y},{y}" + (f",{paths[i]}" if names else "")
            for i, y in enumerate(labels_of(root, dataset))
        ]
        (root / "flagged.csv").write_text("\n".join([head, *lines]) + "\n")

    return how


def table(head: str, line: Callable[[int, str, int], str]) -> Callable[..., None]:
    def how(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
        lines = [line(n, name, row) for n, (name, row) in enumerate(zip(changed, rows, strict=True))]
        (root / "flagged.csv").write_text("\n".join([head, *lines]) + "\n")

    return how


def text(line: Callable[[str], str]) -> Callable[..., None]:
    def how(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
        (root / "flagged.txt").write_text("".join(line(name) + "\n" for name in changed))

    return how


def manifest(line: Callable[[str, str], str], head: str = "path,label") -> Callable[..., None]:
    def how(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
        lines = [line(f"train/{name}", name.split("/")[0]) for name in changed]
        (root / "flagged.csv").write_text("\n".join([head, *lines]) + "\n")

    return how


def saved_by_pandas(head: str, line: Callable[[int, int, str], str]) -> Callable[..., None]:
    """A table as `to_csv` writes it: of each row its place in the list, in the loader and its name."""

    def how(root: Path, changed: list[str], rows: list[int], dataset: ImageFolder) -> None:
        lines = [line(n, *found) for n, found in enumerate(zip(rows, changed, strict=True))]
        (root / "flagged.csv").write_text("\n".join([head, *lines]) + "\n")

    return how


def nested(root: Path) -> None:
    by_names(root)
    for image in list((root / "train").rglob("*.png")):
        (image.parent / "session1").mkdir(exist_ok=True)
        image.rename(image.parent / "session1" / image.name)
    names = (root / "flagged.txt").read_text().split()
    (root / "flagged.txt").write_text("".join(n.replace("/", "/session1/") + "\n" for n in names))


def hub_links(root: Path) -> None:
    by_names(root)
    (root / "blobs").mkdir()
    for number, image in enumerate(list((root / "train").rglob("*.png"))):
        image.rename(root / "blobs" / f"{number:064x}")
        image.symlink_to(f"../../blobs/{number:064x}")


def counted_links(ran: Ran) -> None:
    all_fitted(ran)
    assert "12 flagged images are links" in ran.warned("MEM911"), ran.report.warnings


def accents(root: Path) -> None:
    changed = write_folder(root, names=(unicodedata.normalize("NFD", "béé"), "café", "dog"))
    torchvision_run(root)
    rows = [f"train/{n},{unicodedata.normalize('NFC', n.split('/')[0])}" for n in changed]
    (root / "flagged.csv").write_text("\n".join(["path,label", *rows]) + "\n")


BMP = lambda n: f"img{n:04d}.{'bmp' if n % 9 == 0 and n >= FLAGGED else 'png'}"  # noqa: E731
TV, TIMM = ("--row-order", "torchvision"), ("--row-order", "timm")


def case(name: str, how: Callable[..., None], flagged: str, expected: Expected, *more: str, **kwargs: Any) -> Case:
    return Case("rows", name, saved(how, **kwargs), listed(flagged, *more), expected)


FITTED = Expected(0, holds=all_fitted)
ASKED = Expected(2, says="loaders count them differently", then=TV, holds=all_fitted)
CASES = [
    Case("rows", "files by name", by_names, listed("flagged.txt"), FITTED),
    Case("rows", "indices where both loaders number alike", padded_indices, listed("flagged.npy"), FITTED),
    case("indices of ImageFolder, img1 ... img119", npy, "flagged.npy", ASKED),
    case("indices of ImageFolder, said", npy, "flagged.npy", FITTED, *TV),
    case("indices of timm's reader, said", npy, "flagged.npy", FITTED, *TIMM, loader="timm"),
    case("indices of timm's reader that skips .bmp", npy, "flagged.npy", FITTED, *TIMM, loader="timm", file=BMP),
    case(
        "a mask of timm's rows, which no other loader has as many of",
        mask,
        "flagged.npy",
        FITTED,
        loader="timm",
        file=BMP,
    ),
    case("a mask of ImageFolder with .bmp", mask, "flagged.npy", FITTED, file=BMP),
    case("a mask that both could have written", mask, "flagged.npy", ASKED),
    case("np.argwhere", argwhere, "flagged.npy", FITTED, *TV),
    case("cleanlab's table without names", cleanlab(False), "flagged.csv", ASKED),
    case("cleanlab's table with a column of names", cleanlab(True), "flagged.csv", FITTED),
    case("index and path", table("index,path", lambda n, f, r: f"{r},{f}"), "flagged.csv", FITTED),
    case(
        "index, path and label",
        table("index,path,label", lambda n, f, r: f"{r},{f},{f.split('/')[0]}"),
        "flagged.csv",
        FITTED,
    ),
    case("pandas' index before path", table(",path", lambda n, f, r: f"{n},{f}"), "flagged.csv", FITTED),
    case("pandas' index before index", table(",index", lambda n, f, r: f"{n},{r}"), "flagged.csv", FITTED, *TV),
    case(
        "index that names another file than its path",
        table("index,path", lambda n, f, r: f"{r + 1},{f}"),
        "flagged.csv",
        Expected(3, says="but its index"),
    ),
    case(
        "labels of other rows",
        table("index,label", lambda n, f, r: f"{r},ant"),
        "flagged.csv",
        Expected(3, says="other rows, or class order"),
        *TV,
    ),
    case(
        "a pandas Series, saved with its index",
        saved_by_pandas(",0", lambda n, r, f: f"{n},{r}"),
        "flagged.csv",
        FITTED,
        *TV,
    ),
    case(
        "a pandas Series without a name, which may begin with row 0",
        saved_by_pandas("0", lambda n, r, f: f"{r}"),
        "flagged.csv",
        Expected(3, says="what pandas calls a column without a name"),
        *TV,
    ),
    case(
        "a column of rows that once had a gap",
        saved_by_pandas("index", lambda n, r, f: f"{r}.0"),
        "flagged.csv",
        FITTED,
        *TV,
    ),
    case(
        "semicolons",
        saved_by_pandas("idx;note", lambda n, r, f: f"{r};x"),
        "flagged.csv",
        FITTED,
        *TV,
    ),
    case(
        "path and label as --data has them",
        saved_by_pandas("path,label", lambda n, r, f: f"{f},{f[:3]}"),
        "flagged.csv",
        FITTED,
    ),
    case(
        "floats, as numpy.loadtxt reads rows",
        lambda root, c, rows, d: np.save(root / "flagged.npy", np.array(rows, float)),
        "flagged.npy",
        FITTED,
        *TV,
    ),
    case(
        "a mask of zeros and ones",
        lambda root, c, rows, d: np.save(root / "flagged.npy", np.isin(np.arange(len(d)), rows).astype(int)),
        "flagged.npy",
        FITTED,
        *TV,
    ),
    case("backslashes", text(lambda f: "train\\" + f.replace("/", "\\")), "flagged.txt", FITTED),
    case("absolute paths of another machine", text(lambda f: f"/home/ann/data/train/{f}"), "flagged.txt", FITTED),
    case(
        "a path of another split",
        text(lambda f: f"/home/ann/data/val/{f}"),
        "flagged.txt",
        Expected(3, says="is no index"),
    ),
    Case(
        "rows",
        "a manifest with backslashes",
        saved(manifest(lambda f, y: f.replace("/", "\\") + f",{y}")),
        listed("flagged.csv"),
        FITTED,
    ),
    Case(
        "rows",
        "a manifest with pandas' index",
        saved(manifest(lambda f, y: f"7,{f},{y}", ",path,label")),
        listed("flagged.csv"),
        FITTED,
    ),
    Case(
        "rows",
        "Unnamed: 0",
        saved(manifest(lambda f, y: f"7,{f},{y}", "Unnamed: 0,path,label")),
        listed("flagged.csv"),
        FITTED,
    ),
    Case("rows", "class names with accents in two forms", accents, listed("flagged.csv"), FITTED),
    Case(
        "rows",
        "class/session/image",
        nested,
        listed("flagged.txt"),
        Expected(3, says="nested folder", then=TV, holds=all_fitted),
    ),
    Case("rows", "images that are links to blobs", hub_links, listed("flagged.txt"), Expected(0, holds=counted_links)),
]
