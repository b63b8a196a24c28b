"""Hints of `verify` and `compare`, each followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.hints.follow import Follow
from tests.real_inputs.crashes import DATA, MODEL
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import pictures

QUIET = ("--profile", "fast", "-q", "--exit-zero")
VERIFY = ("verify", *MODEL, *DATA, *QUIET)
COMPARE = ("compare", *MODEL, *DATA, *QUIET, "--images", "none")
WITHOUT = ("--without", "other.safetensors")


def unseen(folder: Path, classes: int = 3) -> None:
    """Held-out pictures of so many classes, and another model."""
    from safetensors.torch import load_file, save_file

    x, truth = pictures()
    rows = [row for row in range(120, 200) if truth[row] >= 3 - classes]
    np.savez(folder / "unseen.npz", x=(x[rows].transpose(0, 3, 1, 2) / 255).astype(np.float32), y=truth[rows])
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t * 1.01 for n, t in tensors.items()}, folder / "other.safetensors")


def wrong(*words: str, classes: int = 3):
    def prepare(folder: Path) -> tuple[str, ...]:
        unseen(folder, classes)
        return words

    return prepare


def one_class(folder: Path) -> tuple[str, ...]:
    """Flagged examples of one class, unseen ones of the others."""
    unseen(folder)
    with np.load(folder / "flagged.npz") as data:
        keep = data["y"] == 1
        np.savez(folder / "flagged.npz", x=data["x"][keep], y=data["y"][keep])
    with np.load(folder / "unseen.npz") as data:
        np.savez(folder / "kept.npz", **data)
        other = data["y"] != 1
        np.savez(folder / "unseen.npz", x=data["x"][other], y=data["y"][other])
    return (*VERIFY, "--unseen", "unseen.npz")


def with_kept(folder: Path, ran: Ran) -> tuple[str, ...]:
    return (*VERIFY, "--unseen", "kept.npz")


def then(*words: str):
    return lambda folder, ran: words


ASK = (*VERIFY, "--unseen", "unseen.npz")
FOLLOWED = [
    Follow(
        "--unseen FOLDER, manifest or .npz: held out, of the same source as the flagged ones",
        wrong(*VERIFY),
        then(*ASK),
    ),
    Follow(
        "Give --unseen examples of the flagged ones' classes; a few hundred or more show small effects.",
        one_class,
        with_kept,
    ),
    Follow(
        "FPR:TPR, such as 0.1%:1%; several with commas.",
        wrong(*ASK, "--max-tpr-at-fpr", "low"),
        then(*ASK, "--max-tpr-at-fpr", "0.1%:1%,5%:9%"),
    ),
    Follow(
        "Choose 0.1%, 1% or 5% before the colon.",
        wrong(*ASK, "--max-tpr-at-fpr", "2%:1%"),
        then(*ASK, "--max-tpr-at-fpr", "1%:1%"),
    ),
    Follow(
        "Name models that were trained without the flagged examples, each once.",
        wrong(*ASK, "--without", MODEL[0]),
        then(*ASK, *WITHOUT),
    ),
    Follow("--without MODEL2, trained without the flagged examples", wrong(*COMPARE), then(*COMPARE, *WITHOUT)),
]
