"""From what a user named to examples: `read` picks the reader.

A source with a broken structure is rejected as a whole, with the lines; an image that cannot
be decoded is left out and listed in `ExampleSet.unreadable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memaudit.data import members
from memaudit.data.arrays import list_arrays
from memaudit.data.classes import Classes, in_order
from memaudit.data.decode import Progress
from memaudit.data.examples import ExampleSet
from memaudit.data.folder import class_names, list_folder
from memaudit.data.images.preprocess import Preprocess
from memaudit.data.kept import Kept
from memaudit.data.listing import ImageListing, Listing
from memaudit.data.manifest import SUFFIXES as MANIFESTS
from memaudit.data.manifest import is_manifest, list_manifest, names_in
from memaudit.data.members import SUFFIXES as ARRAYS
from memaudit.data.members import Arrays
from memaudit.data.parquet import list_tables, names_of_tables, tables_of
from memaudit.data.paths import display
from memaudit.data.rows import SUFFIXES as ROW_LISTS
from memaudit.data.rows import listed_rows
from memaudit.data.saved import is_saved, list_saved, names_of_saved
from memaudit.data.shards import list_shards, shards_of
from memaudit.data.stacked import StackedListing, described_files
from memaudit.data.texts import Encode, list_texts
from memaudit.errors import DataRejected, UsageError

Known = dict[object, Listing]


def read(
    source: str | Path,
    *,
    preprocess: Preprocess,
    num_classes: int | None,
    class_names: Sequence[str] = (),
    class_order: str = "natural",
    row_order: str | None = None,
    data: str | Path | None = None,
    sample: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    paired: bool = False,
    encode: Encode | None = None,
    known: Known | None = None,
    kept: Kept | None = None,
) -> ExampleSet:
    """The examples that `source` names.

    Args:
        source: an image folder, a manifest (`.csv .tsv .jsonl`), arrays (`.npz .safetensors .parquet`), tar shards or
            tables of images (one `.tar` or `.parquet`, or a folder of them), a Hugging Face dataset saved to disk, or
            with `data` a list of its rows.
        preprocess: geometry that images go through; shape and range that arrays must have.
        num_classes: of the model; labels are validated against it.
        class_names: by label, for sources that write names; by default those of `data` or of `source` itself.
        class_order: `natural`, `lexical` or a file of names, for folders when `class_names` is not given.
        row_order: `torchvision` or `timm`: the loader whose numbers the rows of an image folder have; by default they
            are named or counted alike by both, or the caller is asked.
        data: folder, manifest or arrays whose rows `source` lists.
        sample: of more rows, draw so many, each label's in proportion, before any is decoded (`drawn_from`).
        limit: read at most so many rows, evenly spaced; the others are counted in `omitted`.
        progress: called with (done, total) after each image.
        encode: of a network that reads text: from texts to token ids; manifests then hold texts.
        paired: an example may have several labels at once; `class_names` are then those of `paired_names`.
        known: what earlier calls listed of sets of image files, and this one adds: each is listed once.
        kept: where decoded images are kept for later commands.

    Raises:
        DataRejected: the source or one of its rows cannot be audited as given.
        UsageError: an option contradicts the source.
    """
    path = _issues(Path(source))
    names = class_names or (() if paired else class_names_of(path if data is None else data, class_order, row_order))
    classes = Classes.of(names, num_classes)
    if _is_row_list(path, data):
        if data is None:
            raise UsageError(f"{display(path)} is a list of rows; of what?", hint="name the data set: --data DIR|npz")
        whole = _once(known, Path(data), classes, class_order, row_order, paired, encode)
        listing = listed_rows(path, whole, classes)
    else:
        listing = _once(known, path, classes, class_order, row_order, paired, encode)
    if kept is not None and isinstance(listing, ImageListing):
        listing = replace(listing, kept=kept)
    drawn = listing if sample is None else listing.sampled(sample)
    examples = drawn.load(preprocess, limit, progress)
    return examples if drawn is listing else replace(examples, drawn_from=len(listing.rows))


def class_names_of(source: str | Path, class_order: str = "natural", row_order: str | None = None) -> tuple[str, ...]:
    """The class names by label that `source` declares: a folder's sub-folders, or those in the file `class_order`.

    Raises:
        DataRejected: the folder has no usable class folders, or the file is broken.
        UsageError: `class_order` is neither `natural`, `lexical` nor a file.
    """
    path = Path(source)
    if class_order not in ("natural", "lexical"):
        return in_order((), class_order)
    noted = names_noted(path)
    if noted is not None:
        return noted
    return class_names(path, class_order, row_order) if path.is_dir() and not shards_of(path) else ()


def names_noted(source: str | Path) -> tuple[str, ...] | None:
    """The class names by label that tables of images note, whatever order names are in; None of anything else.

    Raises:
        DataRejected: the tables are broken.
        EnvironmentFault: pyarrow, which reads them, is not installed.
    """
    path = Path(source)
    if is_saved(path):
        return names_of_saved(path)
    tables = tables_of(path)
    return names_of_tables(tables) if tables else None


def names_used(source: str | Path, class_order: str) -> tuple[str, ...]:
    """The names that a manifest of every class uses, in `class_order`: the classes by label where there are as many.

    Whoever asks holds their number against the model's: of fewer names each would stand for another label.
    """
    path = Path(source)
    return in_order(names_in(path), class_order) if path.suffix.lower() in MANIFESTS and path.exists() else ()


def remove_overlap(reference: ExampleSet, flagged: ExampleSet) -> tuple[ExampleSet, int]:
    """`reference` without the images that are flagged (same content, whatever the label), and how many those were."""
    ids = set(flagged.ids())
    keep = [i for i, identity in enumerate(reference.ids()) if identity not in ids]
    overlap = len(reference) - len(keep)
    return (reference.subset(keep) if overlap else reference), overlap


def _issues(path: Path) -> Path:
    """`path`, or the table of issues in it where it is a folder that cleanlab's Datalab saved."""
    table = path / "issues.csv"
    return table if (path / "datalab.pkl").is_file() and table.is_file() else path


def _is_row_list(path: Path, data: str | Path | None) -> bool:
    """By suffix; a `.csv` or `.tsv` is one only with `data`, and when its header is not a manifest's."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in ROW_LISTS:
        return False
    return suffix not in (".csv", ".tsv") or (data is not None and not is_manifest(path))


def described(source: str | Path) -> Arrays | None:
    """What the examples of `source` are where they are arrays, read from their headers; None where they are none."""
    path = Path(source)
    if is_saved(path) or tables_of(path):
        return None
    if path.suffix.lower() in ARRAYS:
        return members.described(path)
    return described_files(path) if path.exists() else None


def _once(
    known: Known | None,
    path: Path,
    classes: Classes,
    class_order: str,
    row_order: str | None,
    paired: bool,
    encode: Encode | None,
) -> Listing:
    """As `_list`, or what it gave before; arrays, which would be held in memory for it, are read again."""
    key = path, classes.names, classes.count, class_order, row_order, paired
    if known is not None and key in known:
        return known[key]
    found = _list(path, classes, class_order, row_order, paired, encode)
    if known is not None and isinstance(found, ImageListing) and not isinstance(found, StackedListing):
        known[key] = found
    return found


def _list(
    path: Path,
    classes: Classes,
    class_order: str,
    row_order: str | None,
    paired: bool,
    encode: Encode | None = None,
) -> Listing:
    if encode is not None and path.suffix.lower() in MANIFESTS:
        return list_texts(path, classes, encode)
    if shards := shards_of(path):
        return list_shards(path, shards, classes)
    if is_saved(path):
        return list_saved(path, classes)
    if tables := tables_of(path):
        return list_tables(path, tables, classes)
    if path.is_dir():
        return StackedListing.of(list_folder(path, classes, class_order, row_order))
    if path.suffix.lower() in MANIFESTS:
        return replace(StackedListing.of(list_manifest(path, classes)), paired=paired)
    if path.suffix.lower() in ARRAYS:
        return list_arrays(path, classes, paired)
    if not path.exists():
        raise DataRejected(f"{display(path)} does not exist", hint="check the path, and where you run this")
    raise DataRejected(
        f"{display(path)} is no kind of data memaudit reads",
        hint="an image folder, a manifest (.csv .tsv .jsonl), arrays (.npz .safetensors .parquet), or images in "
        ".tar or .parquet",
    )
