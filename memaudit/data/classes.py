"""From what a source calls a class (a folder, a name, a number) to the model's label. The order is never guessed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memaudit.data.images import RowError
from memaudit.data.numbering import natural_key
from memaudit.data.tables import read_text
from memaudit.errors import DataRejected, UsageError
from memaudit.text import clean, closest

_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Classes:
    """The labels a model knows.

    Attributes:
        names: printable names by label, or empty where none are declared.
        count: number of the model's classes; `None` while nobody knows it.
    """

    names: tuple[str, ...] = ()
    count: int | None = None
    _index: dict[str, int] = field(default_factory=dict, repr=False)
    _composed: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, names: Sequence[str], count: int | None) -> Classes:
        """Classes called `names`, checked against the model's `count`.

        Raises:
            DataRejected: a name is empty or there twice, or there are more names than classes. There may be fewer: timm
                trains 1000 outputs on ten folders. Whether the network uses the others is asked of the reference.
        """
        clear = tuple(printable(n) for n in names)
        index = {name: i for i, name in enumerate(clear)}
        if len(index) != len(clear):
            twice = next(n for n in clear if clear.count(n) > 1)
            raise DataRejected(f"class name '{twice}' is declared twice; every label needs its own name")
        if "" in index:
            raise DataRejected(f"class {index['']} has an empty name")
        if count is not None and count < len(clear):
            raise DataRejected(
                f"the data declares {len(clear)} classes, the model has {count}; a label would name the wrong class",
                hint="list all of the model's classes, one per line in label order, in a file: --class-order FILE",
            )
        counts = Counter(map(_composed, clear))
        composed = {c: i for i, name in enumerate(clear) if counts[c := _composed(name)] == 1}
        return cls(clear, count if count is not None else (len(clear) or None), index, composed)

    def label(self, text: str) -> int:
        """The label that `text`, a number or a declared name, means.

        Raises:
            RowError: it is neither, no class of the model, or both and they differ.
        """
        named = self._find(text)
        if not _INDEX.fullmatch(text):
            if named is None:
                raise RowError(self._unknown(text))
            return named
        if named is not None and named != int(text):
            raise RowError(
                f"label '{text}' is ambiguous: index {int(text)} is class '{self._at(int(text))}', but class {named} "
                f"is called '{text}'; in a .jsonl manifest a number is an index and a string a name"
            )
        return self.index(int(text))

    def name_or_label(self, text: str) -> int:
        """As `label`, but a declared name goes first: for sources that write indices as numbers, not as text."""
        named = self._find(text)
        return self.label(text) if named is None else named

    def named(self, text: str) -> int:
        """The label of a declared name and nothing else.

        Raises:
            RowError: no class is called that.
        """
        named = self._find(text)
        if named is None:
            raise RowError(f"no class is called '{clean(text)}'{closest(text, self.names)}")
        return named

    def index(self, label: int) -> int:
        """`label`, a number, when the model has such a class.

        Raises:
            RowError: it has not.
        """
        if label < 0 or (self.count is not None and label >= self.count):
            highest = "" if self.count is None else f"; the model's labels are 0 to {self.count - 1}"
            raise RowError(f"label {label} is no class{highest}")
        return label

    def _find(self, text: str) -> int | None:
        """The label of the class called `text`, accents written in either way as long as one class can be meant."""
        exact = self._index.get(printable(text))
        return self._composed.get(_composed(text)) if exact is None else exact

    def _at(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else "?"

    def _unknown(self, text: str) -> str:
        if not text:
            return "the label is empty"
        fix = closest(text, self.names) or "; write its index, 0 or more, or a declared class name"
        return f"label '{clean(text)}' is neither an index nor a class name{fix}"


def printable(name: str) -> str:
    """`name` cleaned until cleaning changes nothing, so that cleaned and raw names compare equal."""
    return clean(clean(name))


def _composed(name: str) -> str:
    """`name` with each accented letter as one character, as Linux writes it; macOS may write two."""
    return unicodedata.normalize("NFC", printable(name))


def in_order(folders: Sequence[str], class_order: str) -> tuple[str, ...]:
    """Class names by label: `folders` sorted `natural`ly or `lexical`ly, or the lines of the file `class_order`.

    Raises:
        UsageError: `class_order` is none of the three.
        DataRejected: its file cannot be used.
    """
    if class_order == "natural":
        return tuple(sorted(folders, key=natural_key))
    if class_order == "lexical":
        return tuple(sorted(folders))
    if not Path(class_order).is_file():
        raise UsageError(
            f"class order '{clean(class_order)}' is neither 'natural', 'lexical' nor a file",
            hint="natural is timm's order, lexical is torchvision's; a file lists the names, one per line",
        )
    names = tuple(line.strip() for line in read_text(Path(class_order)).rstrip().split("\n"))
    return Classes.of(names, None).names
