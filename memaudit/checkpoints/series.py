"""The checkpoints that one training run left: which files, in which order, and what is missing from them.

Nothing but names, sizes, headers and pickle instructions is read here; the weights are read, and held against the
model, when an audit needs them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memaudit.checkpoints.directory import lay_out
from memaudit.checkpoints.marks import Mark, mark_of, named_mark, stem_of
from memaudit.checkpoints.reader import fingerprint
from memaudit.checkpoints.sniff import is_checkpoint_name
from memaudit.errors import MemauditError, UsageError
from memaudit.text import clean

FOLDER = "checkpoints"  # where training scripts keep a series beside the final weights
STEP_FOLDER = re.compile(r"^checkpoint-\d+$")  # Hugging Face's Trainer
TIMM = re.compile(r"^(?:checkpoint-\d+|recovery-\d+-\d+|last|model_best)\.pth\.tar$")
# A folder with more files than this is no training run's; looking into each would take minutes.
MAX_FILES = 2000


@dataclass(frozen=True)
class Point:
    """One checkpoint of a series: the weights file, what to call it, and when it was saved."""

    path: Path
    name: str
    mark: Mark

    @property
    def label(self) -> str:
        """`epoch 3`, `step 500`, or the file's name."""
        return self.mark.label or clean(stem_of(self.name), 60)


@dataclass(frozen=True)
class Series:
    """Checkpoints, earliest first.

    Attributes:
        points: none twice, whatever links or copies there are; none later than the model.
        notes: what a reader must know: pruned epochs, files left out.
        named: the user named them, so each must be this model's; found beside the model, strangers are left out.
    """

    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()
    named: bool = False


def find_series(model: Path | None, named: Sequence[str] = ()) -> Series:
    """The checkpoints of the run that `model` came from.

    Args:
        model: what the user gave: a weights file, or a directory of a run; None for a model in memory.
        named: folders, glob patterns and files; without any, the series is looked for beside the model: in its own
            folder, in `checkpoints/` below it, and among the `checkpoint-N/` folders there.

    Raises:
        UsageError: a named path does not exist or holds no checkpoint.
        ModelRejected: `model` itself is no checkpoint.
    """
    weights = None if model is None else lay_out(model).path
    if named or model is None or weights is None:
        points = [point for text in named for point in _named(text)]
        notes: list[str] = []
    else:
        points, notes = _beside(model, weights)
    ordered, more = _ordered(_distinct(points), weights)
    return Series(tuple(ordered), (*notes, *more, *_pruned(ordered)), bool(named))


def _named(text: str) -> list[Point]:
    path = Path(text)
    if path.is_dir():
        found = _in_folder(path) or _in_folder(path / FOLDER)
        if not found:
            try:
                return [_point(path)]
            except MemauditError:
                raise UsageError(
                    f"--checkpoints {clean(text)}: no checkpoint in that folder",
                    hint="name the folder that holds them, a pattern such as 'run/epoch-*.pt', or the files",
                ) from None
        return found
    paths = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(text, recursive=True))]
    if not paths:
        raise UsageError(f"--checkpoints {clean(text)}: no such file or folder", hint="check the path or the pattern")
    return [_point(p) for p in paths]


def _beside(model: Path, weights: Path) -> tuple[list[Point], list[str]]:
    """The series in the folders where runs keep them; of several kinds of names, the model's own or the only one."""
    home = model if model.is_dir() else weights.parent
    if STEP_FOLDER.match(home.name):
        home = home.parent
    everything = [*_in_folder(home), *_in_folder(home / FOLDER)]
    kinds: dict[str, list[Point]] = {}
    for point in everything:
        if point.mark != Mark() or TIMM.match(point.name):
            kinds.setdefault(_kind(point), []).append(point)
    own = _kind(_point_at(weights, weights.name))
    if own in kinds and len(kinds[own]) > 1:
        return kinds[own], []
    several = {kind: points for kind, points in kinds.items() if len(points) > 1}
    if len(several) > 1:
        shown = ", ".join(sorted(clean(points[0].name) for points in several.values())[:4])
        return [], [f"several series lie beside the model ({shown}, ...); none was taken: name one with --checkpoints"]
    return [p for points in several.values() for p in points], []


def _kind(point: Point) -> str:
    """Files of one series have names that differ in their numbers alone."""
    if TIMM.match(point.name):
        return "timm"
    if point.name in ("last.ckpt", "last-v1.ckpt") or point.path.suffix == ".ckpt":
        return f"{_folder(point)}/*.ckpt"
    # Where metrics stand in the name ("epoch=3-val_acc=0.71"), the number of numbers may differ.
    return f"{_folder(point)}/{re.sub(r'[0-9.]+', '#', stem_of(point.name))}"


def _folder(point: Point) -> str:
    return str(point.path.parent.parent if STEP_FOLDER.match(point.name) else point.path.parent)


def _in_folder(folder: Path) -> list[Point]:
    if not folder.is_dir():
        return []
    present = sorted(p for p in folder.iterdir() if not p.name.startswith("."))[:MAX_FILES]
    points = [_point_at(p, p.name) for p in present if is_checkpoint_name(p) and p.is_file()]
    for sub in (p for p in present if STEP_FOLDER.match(p.name) and p.is_dir()):
        try:
            points.append(_point(sub))
        except MemauditError:  # an optimizer's state alone, or a folder that is still being written
            continue
    return points


def _point(path: Path) -> Point:
    """The point of a file, or of a folder that holds one checkpoint."""
    weights = lay_out(path).path
    return _point_at(weights, path.name)


def _point_at(weights: Path, name: str) -> Point:
    return Point(weights, name, mark_of(weights, name))


def _distinct(points: Iterable[Point]) -> list[Point]:
    """Hard links and copies once: under the name that says most."""
    by_file: dict[tuple[int, int], Point] = {}
    for point in points:
        status = point.path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in by_file or _says(point) > _says(by_file[key]):
            by_file[key] = point
    by_step: dict[tuple[object, ...], Point] = {}
    for point in by_file.values():
        # Lightning writes last.ckpt anew: other bytes, the same moment of the same run.
        exact = point.mark.origin == "contents" and None not in (point.mark.epoch, point.mark.step)
        moment = (point.mark.epoch, point.mark.step, point.path.parent) if exact else (str(point.path),)
        if moment not in by_step or _says(point) > _says(by_step[moment]):
            by_step[moment] = point
    by_content: dict[tuple[object, ...], Point] = {}
    alike: dict[tuple[object, ...], int] = {}
    sizes = {point.path: point.path.stat().st_size for point in by_step.values()}
    for point in by_step.values():
        alike[_alike(point, sizes)] = alike.get(_alike(point, sizes), 0) + 1
    for point in by_step.values():
        same = _alike(point, sizes)
        # Only files of one size and one mark can be copies; only those are hashed.
        content = (fingerprint(point.path),) if alike[same] > 1 else (str(point.path),)
        key2 = (*same, *content)
        if key2 not in by_content or _says(point) > _says(by_content[key2]):
            by_content[key2] = point
    return list(by_content.values())


def _alike(point: Point, sizes: dict[Path, int]) -> tuple[object, ...]:
    return sizes[point.path], point.mark.epoch, point.mark.step, point.mark.batch


def _says(point: Point) -> tuple[int, int]:
    named = named_mark(point.name)
    return int(named != Mark()), int(named.batch is None)


def _ordered(points: list[Point], model: Path | None) -> tuple[list[Point], list[str]]:
    """Earliest first, and nothing that was saved after the model."""
    marks = [p.mark for p in points]
    if points and all(m.epoch is not None for m in marks):
        # timm saves recovery-3-40 during epoch 3 and checkpoint-3 at its end.
        points.sort(key=lambda p: (p.mark.epoch, p.mark.batch is None, p.mark.batch or 0, p.mark.step or 0, p.name))
    elif points and all(m.step is not None for m in marks):
        points.sort(key=lambda p: (p.mark.step, p.name))
    else:
        points.sort(key=lambda p: _natural(p.name))
    place = None if model is None else _place(points, model)
    if place is None or place == len(points) - 1:
        return _labelled(points), []
    late = len(points) - place - 1
    note = f"{late} checkpoints were saved after the audited one ({points[place].label}); they were left out"
    return _labelled(points[: place + 1]), [note]


def _place(points: list[Point], model: Path) -> int | None:
    """Which of the points is the model itself: the same file, or one of the same size, mark and content."""
    own, mark = model.stat(), mark_of(model, model.name)
    when = (mark.epoch, mark.step)
    digest = ""
    for number in reversed(range(len(points))):
        point = points[number]
        status = point.path.stat()
        if (status.st_dev, status.st_ino) == (own.st_dev, own.st_ino):
            return number
        if status.st_size == own.st_size and when in ((None, None), (point.mark.epoch, point.mark.step)):
            digest = digest or fingerprint(model)
            if fingerprint(point.path) == digest:
                return number
    return None


def _labelled(points: list[Point]) -> list[Point]:
    """Labels are what reports call checkpoints: where two would be the same, the files' names are used."""
    labels = [p.label for p in points]
    if len(set(labels)) == len(labels):
        return points
    return [replace(p, mark=replace(p.mark, epoch=None, step=None, number=None)) for p in points]


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", stem_of(name))
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts if p]


def _pruned(points: Sequence[Point]) -> list[str]:
    """timm keeps the best few epochs: the early ones, in which examples are learned, are gone by default."""
    epochs = sorted({int(p.mark.epoch) for p in points if TIMM.match(p.name) and p.mark.epoch is not None})
    if not epochs:
        return []
    whole = epochs[-1] + 1
    missing = whole - len(epochs)
    if missing <= 0:
        return []
    early = f" (the first kept is epoch {epochs[0]})" if epochs[0] else ""
    kept = f"timm keeps only the best of them; train with --checkpoint-hist {whole} to keep all"
    return [f"{missing} of {whole} epochs have no checkpoint{early}: {kept}"]
