"""Images in the cells of Arrow tables: which columns hold what, and the rows that they make.

A column of undecoded images holds bytes, or `{bytes, path}` as Hugging Face datasets writes them, whose notes on a
table also say what its labels are called.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from memaudit.data.classes import Classes
from memaudit.data.compact import Row
from memaudit.data.decode import MAX_BYTES
from memaudit.data.images import RowError, Unreadable
from memaudit.data.paths import display
from memaudit.data.rejections import Rejections
from memaudit.errors import DataRejected, EnvironmentFault
from memaudit.text import clean

LABELS = ("label", "y", "labels")
FURTHER = ("id", "true_label")
# Where Hugging Face datasets notes what columns are.
NOTES = b"huggingface"
NO_LABEL = "the table's label column is called label, or y"


def pyarrow_for(path: Path) -> Any:
    """The package that reads `path`.

    Raises:
        EnvironmentFault: it is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise EnvironmentFault(
            f"{display(path)} needs pyarrow, which is not installed", hint="pip install pyarrow"
        ) from None
    return pyarrow


@dataclass(frozen=True)
class Cells:
    """Which columns of a table hold what.

    Attributes:
        image: the column of undecoded images.
        nested: its cells are `{bytes, ...}`; `path`: and say what each file was called.
        label: the column of labels; `names`: what they are called, where the table says.
        further: of `FURTHER`, the columns that there are.
        several: other columns hold labels, too.
    """

    image: str
    nested: bool
    path: bool
    label: str
    names: tuple[str, ...]
    further: tuple[str, ...]
    several: bool = False

    @classmethod
    def of(cls, schema: Any, name: str, count: int | None = None) -> Cells:
        """The columns of the table called `name`.

        Args:
            count: classes of the model: it tells which labels are meant where the table has several kinds of them.

        Raises:
            DataRejected: not one of them holds images, or labels; or its notes are broken.
        """
        types = _types(schema, name)
        said = _notes(schema, name)
        images = _images(types, said)
        if len(images) != 1:
            shown = ", ".join(clean(c) for c in images) or "none"
            raise DataRejected(f"{name}: columns that hold images: {shown}", hint="keep one column of undecoded images")
        labels = {column: _names(said, column, name) for column in _labels(types, said)}
        if not labels:
            shown = ", ".join(clean(c) for c in types)
            raise DataRejected(f"{name}: no column 'label' among {shown}", hint=NO_LABEL)
        meant = [c for c, names in labels.items() if len(labels) == 1 or len(names) == count]
        if len(meant) != 1:
            shown = ", ".join(f"{clean(c)} ({len(names)} classes)" for c, names in labels.items())
            model = "" if count is None else f", and the model has {count} classes"
            raise DataRejected(f"{name}: columns that hold labels: {shown}{model}", hint=NO_LABEL)
        (label,) = meant
        nested = _is_nested(types[images[0]])
        path = nested and types[images[0]].get_field_index("path") >= 0
        further = tuple(c for c in FURTHER if c in types)
        return cls(images[0], nested, path, label, labels[label], further, several=len(labels) > 1)

    def called(self, name: str) -> str:
        """The table's `name`, with the column of labels where another could have been meant."""
        return f"{name} ({clean(self.label)})" if self.several else name

    def rows(self, batches: Iterable[Any], classes: Classes, rejections: Rejections) -> Iterator[Row]:
        """The rows of record batches, which need not hold the images' bytes; what is wrong with others is noted."""
        number, seen = 0, set[str]()
        for batch in batches:
            labels, *more = (batch.column(c).to_pylist() for c in (self.label, *self.further))
            paths = _field(batch.column(self.image), "path").to_pylist() if self.path else [None] * batch.num_rows
            for place, (given, path) in enumerate(zip(labels, paths, strict=True)):
                further = {name: column[place] for name, column in zip(self.further, more, strict=True)}
                try:
                    label, truth = self._label(given, classes), further.get("true_label")
                    own = further.get("id")
                    yield Row(
                        f"{number}/{PurePath(path).name}" if path else f"row {number}",
                        label,
                        number,
                        true_label=None if truth is None else self._label(truth, classes),
                        id=None if own is None else _new(str(own), seen),
                    )
                except RowError as reason:
                    rejections.add(f"row {number}", reason)
                number += 1

    def _label(self, value: object, classes: Classes) -> int:
        """The model's label of a cell, by name where the table names its classes and the model does too."""
        if isinstance(value, str):
            return classes.name_or_label(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise RowError("no label" if value in (None, -1) else f"label '{clean(value)}' is no class")
        if self.names and value >= len(self.names):
            raise RowError(f"label {value} is none of the table's {len(self.names)} classes")
        return classes.named(self.names[value]) if self.names and classes.names else classes.index(value)


def names_noted(schema: Any, name: str) -> tuple[str, ...]:
    """What the labels of the table called `name` are called; empty where nothing says, or several columns do."""
    said = _notes(schema, name)
    labels = _labels(_types(schema, name), said)
    return _names(said, labels[0], name) if len(labels) == 1 else ()


def holds_images(schema: Any, name: str) -> bool:
    """Whether a column of the table called `name` can hold undecoded images."""
    return bool(_images(_types(schema, name), _notes(schema, name)))


def bytes_of(column: Any, cells: Cells) -> Any:
    """The cells' bytes, of an Arrow array of images."""
    return _field(column, "bytes") if cells.nested else column


def image_of(content: bytes | None) -> bytes:
    """The undecoded image of a cell.

    Raises:
        Unreadable: the cell is empty.
        RowError: it is too large for an image.
    """
    if content is None:
        raise Unreadable("holds no image, at most a path; save the table with the images in it")
    check_size(len(content))
    return content


def check_size(size: int) -> None:
    """Raise `RowError` where an image has more bytes than one may have."""
    if size > MAX_BYTES:
        raise RowError(f"larger than {MAX_BYTES >> 20} MiB; no image within 40 megapixels needs that")


def _new(identity: str, seen: set[str]) -> str:
    if identity in seen:
        raise RowError(f"id '{clean(identity)}' is there twice")
    seen.add(identity)
    return identity


def _types(schema: Any, name: str) -> dict[str, Any]:
    """Types of the columns."""
    if len(set(schema.names)) != len(schema.names):
        raise DataRejected(f"{name}: two columns have one name")
    return dict(zip(schema.names, schema.types, strict=True))


def _notes(schema: Any, name: str) -> dict[str, dict[str, Any]]:
    """What Hugging Face datasets noted of each column."""
    try:
        text = (schema.metadata or {}).get(NOTES, b"{}")
        said = json.loads(text).get("info", {}).get("features", {})
        return {column: kind for column, kind in said.items() if isinstance(kind, dict)}
    except (ValueError, RecursionError, AttributeError):
        raise DataRejected(f"{name}: its notes on columns (huggingface) are broken", hint="write it anew") from None


def _kind(said: dict[str, dict[str, Any]], column: str) -> object:
    return said.get(column, {}).get("_type")


def _labels(types: dict[str, Any], said: dict[str, dict[str, Any]]) -> Sequence[str]:
    """Columns that can hold the labels: one that is called so, or else those that notes call labels."""
    return [c for c in LABELS if c in types][:1] or [c for c in types if _kind(said, c) == "ClassLabel"]


def _names(said: dict[str, dict[str, Any]], column: str, name: str) -> tuple[str, ...]:
    """What the labels in `column` are called; empty where nothing says."""
    names = said.get(column, {}).get("names") or []
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise DataRejected(f"{name}: the names of its classes are no texts", hint="write it anew")
    return tuple(names)


def _images(types: dict[str, Any], said: dict[str, dict[str, Any]]) -> Sequence[str]:
    """Columns that can hold images; notes that call one something else are believed."""
    return [c for c, kind in types.items() if _holds_bytes(kind) and _kind(said, c) in (None, "Image")]


def _holds_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary") or _is_nested(kind)


def _is_nested(kind: Any) -> bool:
    if not str(kind).startswith("struct<"):
        return False
    place = kind.get_field_index("bytes")
    return place >= 0 and str(kind.field(place).type) in ("binary", "large_binary")


def _field(column: Any, name: str) -> Any:
    """One field of an array of structures; missing where the structure is."""
    return column.flatten()[column.type.get_field_index(name)]
