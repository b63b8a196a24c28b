"""Hints of `verify` and `compare`, each followed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from memaudit import report as reports
from tests import report_samples as samples
from tests.hints.follow import REPORT, Follow
from tests.real_inputs.crashes import DATA, MODEL
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import pictures
from tests.report.test_officer import edit

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


RECORD = ("--erased", "edit.erase.json")


def recorded(other: str | None, *words: str):
    """With the record of the edit that made the model and a report, and `other` in place of a record."""

    def prepare(folder: Path) -> tuple[str, ...]:
        unseen(folder)
        sha256 = hashlib.sha256((folder / MODEL[0]).read_bytes()).hexdigest()
        (folder / "edit.erase.json").write_text(edit(sha256=sha256).model_dump_json())
        (folder / "report").mkdir()
        reports.write(samples.small(), folder / REPORT)
        if other is None:
            return words
        (folder / "other.json").write_text(other)
        return (*words, "--erased", "other.json")

    return prepare


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
    Follow("memaudit erase writes one: NAME.erase.json", recorded("{}", *ASK), then(*ASK, *RECORD)),
    Follow(
        "Verify the edited copy, or name the NAME.erase.json that was written with this one.",
        recorded(edit(sha256="2" * 64).model_dump_json(), *ASK),
        then(*ASK, *RECORD),
    ),
    Follow(
        "Render the report that erase wrote beside it, NAME.report.json: it holds the edit.",
        recorded(None, "render", "edit.erase.json", "-o", "officer.html"),
        then("render", REPORT, "-o", "officer.html"),
    ),
    Follow("--without MODEL2, trained without the flagged examples", wrong(*COMPARE), then(*COMPARE, *WITHOUT)),
]
