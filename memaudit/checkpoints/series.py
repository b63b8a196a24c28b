"""The checkpoints that one training run left: which files, in which order, and what is missing from them.

Nothing but names, sizes, headers and pickle instructions is read here; the weights are read, and compared with the
model, when an audit needs them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memaudit.checkpoints.directory import LAST, lay_out
from memaudit.checkpoints.marks import Mark, mark_of, named_mark, stem_of, timeless
from memaudit.checkpoints.reader import fingerprint
from memaudit.checkpoints.sniff import is_checkpoint_name
from memaudit.errors import MemauditError, UsageError
from memaudit.text import clean

FOLDER = "checkpoints"  # where training scripts keep a series beside the final weights
STEP_FOLDER = re.compile(r"^checkpoint-\d+$")  # Hugging Face's Trainer
TIMM = re.compile(r"^(?:checkpoint-\d+|recovery-\d+-\d+|last|model_best)\.pth\.tar$")
# A folder with more files than this is no training run's; looking into each would take minutes.
MAX_FILES = 2000
NAME_THEM = "name the model's own with --checkpoints"


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
    kinds = _kinds([*_in_folder(home), *_in_folder(home / FOLDER)])
    own = next((kind for kind, points in kinds.items() if any(p.path == weights for p in points)), None)
    if own is not None and _tells_time(weights) and len(kinds[own]) < 2:
        return [], []  # named as one of a series that has no other: its neighbours are other runs
    if own is not None and len(kinds[own]) > 1:
        return _moments(kinds[own])
    several = {kind: points for kind, points in kinds.items() if len(points) > 1}
    if len(several) > 1:
        shown = ", ".join(sorted(clean(points[0].name) for points in several.values())[:4])
        return [], [f"several series lie beside the model ({shown}, ...); none was taken: {NAME_THEM}"]
    return _moments([p for points in several.values() for p in points])


def _tells_time(weights: Path) -> bool:
    return named_mark(weights.name) != Mark()


def _moments(points: list[Point]) -> tuple[list[Point], list[str]]:
    """`points`, if no two of them claim the same moment: a run has each of its moments once."""
    seen: dict[tuple[object, ...], Point] = {}
    for point in _distinct(points):
        mark = point.mark
        moment = (mark.epoch, mark.step, mark.batch, mark.number)
        if mark != Mark() and moment in seen and point.name != LAST != seen[moment].name:
            shown = f"{clean(seen[moment].name)} and {clean(point.name)} are both of {mark.label}"
            return [], [f"the checkpoints beside the model are of several runs ({shown}); none was taken: {NAME_THEM}"]
        seen[moment] = point
    return points, []


def _kind(point: Point) -> str:
    """Files of one series lie in one folder and have names that differ in moments and metrics alone."""
    if TIMM.match(point.name):
        return f"{_folder(point)}/timm"
    return f"{_folder(point)}/{timeless(point.name, point.mark)}"


def _kinds(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by kind; Lightning's `last.ckpt` belongs to the only other kind of its folder."""
    kinds: dict[str, list[Point]] = {}
    lasts = []
    for point in points:
        if point.name == LAST:
            lasts.append(point)
        elif point.mark != Mark() or TIMM.match(point.name):
            kinds.setdefault(_kind(point), []).append(point)
    for last in lasts:
        others = [k for k, of in kinds.items() if _folder(of[0]) == _folder(last) and of[0].name.endswith(".ckpt")]
        kinds.setdefault(others[0] if len(others) == 1 else _kind(last), []).append(last)
    return kinds


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
    # Lightning writes last.ckpt anew: other bytes, the same moment of the same run.
    saved = {_moment(point) for point in by_file.values() if point.name != LAST} - {None}
    once = [point for point in by_file.values() if point.name != LAST or _moment(point) not in saved]
    by_content: dict[tuple[object, ...], Point] = {}
    alike: dict[tuple[object, ...], int] = {}
    sizes = {point.path: point.path.stat().st_size for point in once}
    for point in once:
        alike[_alike(point, sizes)] = alike.get(_alike(point, sizes), 0) + 1
    for point in once:
        same = _alike(point, sizes)
        # Only files of one size and one mark can be copies; only those are hashed.
        content = (fingerprint(point.path),) if alike[same] > 1 else (str(point.path),)
        key2 = (*same, *content)
        if key2 not in by_content or _says(point) > _says(by_content[key2]):
            by_content[key2] = point
    return list(by_content.values())


def _moment(point: Point) -> tuple[object, ...] | None:
    """Epoch, step and folder, where the contents say both."""
    mark = point.mark
    exact = mark.origin == "contents" and None not in (mark.epoch, mark.step)
    return (mark.epoch, mark.step, point.path.parent) if exact else None


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
