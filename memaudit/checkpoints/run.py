"""What a timm training run says of its data: `args.yaml`, which timm's training script writes beside its checkpoints.

It is read only where the user names the run's folder, with YAML's safe loader, and a few of its values are used: where
the image folders are, which of them is which, and the order of the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memaudit.checkpoints.source import opened
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean

NAME = "args.yaml"
MAX_BYTES = 1 << 20
MAX_PATH = 4096
# The folder that --train-split and --val-split name, or one of these in its place, as timm looks for them.
TRAINING = ("train", "training")
EVALUATION = ("val", "valid", "validation", "eval", "evaluation")
# A relative folder is relative to where training ran: mostly a folder above the run, else the working directory.
LEVELS = 6


@dataclass(frozen=True)
class Run:
    """The data of a training run.

    Attributes:
        train: image folder it was trained on; None where that is no folder on this machine.
        validation: image folder of its validation split; None where there is none.
        class_order: natural, lexical, or the file that timm's own class-map option named.
        row_order: whose loader numbered the rows: torchvision or timm; None where that is not known.
        problem: why `train` is None, in a sentence; empty otherwise.
    """

    train: Path | None
    validation: Path | None
    class_order: str = "natural"
    problem: str = ""
    row_order: str | None = None


def find_run(model: Path, class_order: str | None = None) -> Run | None:
    """The run whose folder `model` is; None where it is no timm run.

    Args:
        class_order: what the user says of it; the run's own class map is then not asked.

    Raises:
        ModelRejected: its `args.yaml` is no table of settings.
        UsageError: its class map is of a kind that cannot be read safely.
    """
    if not model.is_dir() or not (model / NAME).is_file():
        return None
    args = arguments(model / NAME)
    dataset = _text(args, "dataset").lower()
    where = _text(args, "data_dir") or _text(args, "data")
    lexical = dataset in ("torch/image_folder", "torch/folder")
    if "/" in dataset and not lexical:
        return Run(None, None, problem=f"the run was trained on {clean(dataset)}, which is no image folder")
    if not where:
        return Run(None, None, problem=f"{NAME} names no data folder")
    root = next((folder for folder in _places(where, model) if folder.is_dir()), None)
    if root is None:
        return Run(None, None, problem=f"the run's data folder {clean(Path(where).name)} is not on this machine")
    train = _split(root, _text(args, "train_split") or "train", TRAINING) or root
    validation = _split(root, _text(args, "val_split") or "validation", EVALUATION)
    order = class_order or _class_map(args, root, train) or ("lexical" if lexical else "natural")
    return Run(train, validation, order, row_order="torchvision" if lexical else "timm")


def arguments(path: Path) -> dict[str, Any]:
    """The settings in an `args.yaml`, none of them checked.

    Raises:
        ModelRejected: it is no table of settings.
    """
    with opened(path) as source:
        raw = source.read(0, MAX_BYTES + 1)
    try:
        if len(raw) > MAX_BYTES:
            raise ValueError("it is too large")
        found = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = clean(str(error).split("\n")[0])
        raise ModelRejected(f"{NAME} cannot be read: {reason}", hint="name the checkpoint file itself") from None
    if not isinstance(found, dict):
        raise ModelRejected(f"{NAME} holds no settings", hint="name the checkpoint file itself")
    return found


def _text(args: dict[str, Any], name: str) -> str:
    value = args.get(name)
    return value if isinstance(value, str) and len(value) <= MAX_PATH and "\0" not in value else ""


def _places(where: str, model: Path) -> Iterator[Path]:
    path = Path(where)
    if not path.is_absolute():
        for folder in [model.resolve(), *model.resolve().parents][:LEVELS]:
            yield folder / path
    yield path


def _split(root: Path, name: str, synonyms: tuple[str, ...]) -> Path | None:
    """The sub-folder of a split; parts of one, as in `train[:10%]`, are part of it."""
    wanted = name.split("[")[0]
    names = (wanted, *synonyms) if wanted in synonyms else (wanted,)
    return next((root / n for n in names if n and ".." not in Path(n).parts and (root / n).is_dir()), None)


def _class_map(args: dict[str, Any], root: Path, train: Path) -> str:
    """The file of class names, which may lie in the data folder."""
    name = _text(args, "class_map")
    if not name:
        return ""
    found = next((p for p in (Path(name), root / name, train / name) if p.is_file()), None)
    if found is None or found.suffix != ".txt":
        raise UsageError(
            f"the run was trained with the class map {clean(Path(name).name)}, which "
            + ("is not on this machine" if found is None else "is no text file"),
            hint="give the class names, one per line in label order: --class-order FILE",
        )
    return str(found)
