"""When a checkpoint was saved: the epoch or step that its contents carry, else its name. Nothing in it is run."""

from __future__ import annotations

import json
import os
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memaudit.checkpoints.archive import MAX_PICKLE
from memaudit.checkpoints.header import read_header
from memaudit.checkpoints.opcodes import MAX_OPCODES
from memaudit.checkpoints.sniff import sniff
from memaudit.checkpoints.source import Source, opened
from memaudit.errors import MemauditError

EPOCH_KEYS = ("epoch",)
STEP_KEYS = ("global_step", "step", "iteration", "iter")
# What Hugging Face's Trainer writes beside the weights of each checkpoint-N.
TRAINER_STATE = "trainer_state.json"
MAX_TRAINER_STATE = 64 << 20
LARGEST = 1 << 40

_EPOCH = re.compile(r"(?:^|[^a-z])(?:epochs?|ep)[-_=. ]?(\d{1,12})", re.IGNORECASE)
_STEP = re.compile(r"(?:^|[^a-z])(?:global[-_]?steps?|steps?|iter(?:ation)?s?)[-_=. ]?(\d{1,12})", re.IGNORECASE)
_SAVED = re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|chkpt|snapshot|recovery)[-_=. ]?(\d{1,12})", re.IGNORECASE)
# A word and the number that belongs to it; a bare number has an empty word.
_NUMBER = re.compile(
    r"((?:acc|top|f|m?ap)\d{1,2}(?=[-_=]\d)|[A-Za-z]*)([-_=. ]?)(\d+(?:\.\d+)?(?:e-?\d+)?)", re.IGNORECASE
)
_TIME = re.compile(
    r"e|ep|epochs?|global|steps?|it|iter(?:ation)?s?|checkpoint|ckpt|chkpt|snapshot|recovery", re.IGNORECASE
)
# What is measured at a moment changes with it, as in `epoch=3-val_acc=0.71`.
_METRIC = re.compile(
    r".*(?:acc|loss|f|auc|map|ap|top|score|err|iou|metric|precision|recall|val|valid)\d{0,2}", re.IGNORECASE
)
# Numbers that tell one run from another.
_APART = re.compile(r"fold|folds|k|seed|s|lr|wd|v|version|ver|run|trial|exp|rank|split|part|bs|d|w", re.IGNORECASE)
_RECOVERY = re.compile(r"^recovery-(\d{1,12})-(\d{1,12})$")


@dataclass(frozen=True)
class Mark:
    """When a checkpoint was saved.

    Attributes:
        epoch: as stored or named; whole, or a fraction where the trainer counts so.
        batch: of a file that timm saved in the middle of an epoch.
        number: in the name, where nothing says whether it counts epochs or steps.
    """

    epoch: float | None = None
    step: int | None = None
    batch: int | None = None
    number: int | None = None
    origin: Literal["contents", "name", "none"] = "none"

    @property
    def label(self) -> str:
        """`epoch 3`, `step 500`, `epoch 3, batch 40`; empty where nothing is known."""
        if self.epoch is not None:
            return f"epoch {self.epoch:g}" + ("" if self.batch is None else f", batch {self.batch}")
        if self.step is not None:
            return f"step {self.step}"
        return "" if self.number is None else f"checkpoint {self.number}"


def mark_of(path: Path, name: str) -> Mark:
    """The mark of the weights in `path`; `name` is what a user calls them (the folder's, for `checkpoint-500/`)."""
    stored = _stored(path)
    named = named_mark(name)
    if stored == (None, None):
        return named
    return Mark(stored[0], stored[1], named.batch, None, "contents")


def named_mark(name: str) -> Mark:
    """What a file's or a folder's name says: `epoch-012`, `epoch=3-step=120`, `checkpoint-500`, `recovery-3-40`."""
    stem = stem_of(name)
    if recovery := _RECOVERY.match(stem):
        return Mark(float(recovery[1]), None, int(recovery[2]), None, "name")
    epoch, step, saved = _EPOCH.search(stem), _STEP.search(stem), _SAVED.search(stem)
    if epoch or step:
        return Mark(float(epoch[1]) if epoch else None, int(step[1]) if step else None, None, None, "name")
    return Mark(number=int(saved[1]), origin="name") if saved else Mark()


def stem_of(name: str) -> str:
    """`name` without a checkpoint's extension."""
    lower = name.lower()
    for suffix in (".pth.tar", ".safetensors", ".safetensors.index.json", ".pth", ".pt", ".ckpt", ".bin"):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def timeless(name: str, mark: Mark) -> str:
    """`name` with `#` for each number that changes with time: what is left is the same for checkpoints of one run.

    Args:
        mark: when it was saved; where no word says which number is the time, it is the one that is the mark's own.
    """
    stem = stem_of(name)
    said = any(_TIME.fullmatch(match[1]) for match in _NUMBER.finditer(stem))
    moments = {n for n in (mark.epoch, mark.step, mark.batch, mark.number) if n is not None}
    moments |= {mark.epoch + 1} if mark.epoch is not None else set()  # stored from 0, named from 1

    def replace(match: re.Match[str]) -> str:
        word, separator, number = match.groups()
        timed = bool(_TIME.fullmatch(word) or _METRIC.fullmatch(word))
        if not timed and not said and not _APART.fullmatch(word) and "e" not in number.lower():
            timed = float(number) in moments
        return f"{word}{separator}#" if timed else match[0]

    return _NUMBER.sub(replace, stem)


def _stored(path: Path) -> tuple[float | None, int | None]:
    """Epoch and step in the contents; nothing where they cannot be read: reading the weights will say why."""
    try:
        trainer = path.parent / TRAINER_STATE
        if trainer.exists():
            with opened(trainer) as source:
                found = _from_json(source)
            if found != (None, None):
                return found
        if path.name.endswith(".index.json"):
            return None, None
        with opened(path) as source:
            return _from_header(source) if sniff(source) == "safetensors" else _from_pickle(source)
    except (MemauditError, OSError, ValueError, IndexError, zipfile.BadZipFile, NotImplementedError, RecursionError):
        return None, None


def _from_json(source: Source) -> tuple[float | None, int | None]:
    if source.size > MAX_TRAINER_STATE:
        return None, None
    raw = json.loads(source.read(0, source.size))
    return _pair(raw) if isinstance(raw, dict) else (None, None)


def _from_header(source: Source) -> tuple[float | None, int | None]:
    texts = read_header(source).metadata
    values: dict[str, object] = {}
    for key in (*EPOCH_KEYS, *STEP_KEYS):
        text = texts.get(key, "")
        if re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text):
            values[key] = float(text)
    return _pair(values)


def _from_pickle(source: Source) -> tuple[float | None, int | None]:
    """Numbers beside the weights, read from the pickle's instructions: the dictionary is never built.

    A key counts only where it is followed by its number in the outermost dictionary, which has one open mark.
    """
    with os.fdopen(os.dup(source.descriptor), "rb") as file, zipfile.ZipFile(file) as archive:
        inside = [m for m in archive.infolist() if m.filename.endswith("/data.pkl")]
        if len(inside) != 1 or inside[0].file_size > MAX_PICKLE:
            return None, None
        pickle = archive.read(inside[0])
    values: dict[str, object] = {}
    marks, key = 0, ""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count > MAX_OPCODES:
            break
        name = opcode.name
        if name == "MARK":
            marks += 1
        elif name in ("SETITEMS", "APPENDS", "TUPLE", "ADDITEMS", "DICT", "LIST", "FROZENSET", "POP_MARK"):
            marks -= 1
        if name in ("BINUNICODE", "SHORT_BINUNICODE") and marks == 1 and argument in (*EPOCH_KEYS, *STEP_KEYS):
            key = str(argument)
        elif key and name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            values.setdefault(key, argument)
            key = ""
        elif name not in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            key = ""
    return _pair(values)


def _pair(values: Mapping[str, object]) -> tuple[float | None, int | None]:
    epochs = [_number(values.get(k)) for k in EPOCH_KEYS]
    steps = [_number(values.get(k)) for k in STEP_KEYS]
    step = next((s for s in steps if s is not None), None)
    return next((e for e in epochs if e is not None), None), None if step is None else int(step)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and type(value) is not bool and 0 <= value < LARGEST else None
