"""What every source has in common: choosing a reader, identity, duplicates, overlap, limits, memory, progress."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from memaudit.data import Preprocess, class_names_of, read, remove_overlap
from memaudit.data.compact import Row
from memaudit.data.listing import Listing
from memaudit.data.sources import Known
from memaudit.errors import DataRejected, ExitCode, UsageError
from memaudit.text import clean

SMALL = Preprocess(input_size=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Noise, so that no two seeds and no two pixels are alike; `size` is width, height."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def safe(text: str) -> bool:
    """Whether cleaning has nothing left to escape in `text`."""
    return text == clean(text, limit=10**6)


def write(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(path)
    return path


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`animals/{cat,dog}/{1,2,10}.png`, six different images; the working directory is its parent."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cat/1", "cat/2", "cat/10", "dog/1", "dog/2", "dog/10")):
        write(tmp_path / f"animals/{name}.png", i)
    return Path("animals")


def test_each_kind_of_source_gives_the_same_pixels_labels_and_order(animals: Path) -> None:
    names = [f"{c}/{i}.png" for c in ("cat", "dog") for i in (1, 2, 10)]
    x = np.stack([np.asarray(Image.open(animals / n)) for n in names])
    np.savez("a.npz", x=x, y=np.repeat([0, 1], 3))
    rows = "".join(f"{n},{i // 3}\n" for i, n in enumerate(names))
    (animals / "m.csv").write_text("path,label\n" + rows)
    (animals / "m.tsv").write_text("path\tlabel\n" + rows.replace(",", "\t"))
    (animals / "m.jsonl").write_text("".join(f'{{"path": "{n}", "label": {i // 3}}}\n' for i, n in enumerate(names)))
    Path("rows.txt").write_text("\n".join(names))
    folder = read(animals, preprocess=SMALL, num_classes=2)
    assert folder.pixels.dtype == torch.uint8
    assert folder.class_names == ("cat", "dog")
    assert [e.source for e in folder.examples] == names
    for source, data in (
        (animals / "m.csv", None),
        (animals / "m.tsv", None),
        (animals / "m.jsonl", None),
        (Path("rows.txt"), animals),
        (Path("rows.txt"), animals / "m.csv"),
    ):
        other = read(source, preprocess=SMALL, num_classes=2, data=data)
        assert torch.equal(other.pixels, folder.pixels), source
        assert other.sha256 == folder.sha256, source
    arrays = read("a.npz", preprocess=SMALL, num_classes=2)
    assert torch.equal(arrays.pixels, folder.pixels)
    assert arrays.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("missing.csv", ExitCode.REJECTED, r"missing\.csv does not exist"),
        ("missing", ExitCode.REJECTED, "missing does not exist"),
        ("missing.npz", ExitCode.REJECTED, "does not exist"),
        ("notes.md", ExitCode.REJECTED, r"notes\.md is no kind of data"),
        ("rows.txt", ExitCode.USAGE, r"rows\.txt is a list of rows; of what\?"),
    ],
)
def test_a_source_that_cannot_be_read_is_an_error_with_its_exit_code(
    animals: Path, source: str, code: ExitCode, message: str
) -> None:
    Path("notes.md").write_text("x")
    Path("rows.txt").write_text("0")
    with pytest.raises((DataRejected, UsageError), match=message) as caught:
        read(source, preprocess=SMALL, num_classes=2)
    assert caught.value.exit_code == code


def test_messages_and_sources_never_hold_absolute_paths(animals: Path, tmp_path: Path) -> None:
    with pytest.raises(DataRejected) as caught:
        read(tmp_path / "animals" / "none.csv", preprocess=SMALL, num_classes=2)
    assert str(tmp_path) not in str(caught.value)
    everything = read(tmp_path / "animals", preprocess=SMALL, num_classes=2)
    assert everything.source == "animals"
    assert str(tmp_path) not in repr(everything.examples)


def test_the_class_order_file_serves_every_source(animals: Path) -> None:
    Path("order.txt").write_text("dog\ncat\nfish\n")
    (animals / "m.csv").write_text("path,label\ncat/1.png,cat\n")
    assert class_names_of(animals / "m.csv", "order.txt") == ("dog", "cat", "fish")
    assert read(animals / "m.csv", preprocess=SMALL, num_classes=3, class_order="order.txt").labels.tolist() == [1]
    (animals / "m.csv").unlink()
    assert read(animals, preprocess=SMALL, num_classes=3, class_order="order.txt").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_class_order_that_is_nothing_is_a_usage_error(animals: Path) -> None:
    with pytest.raises(UsageError, match="class order 'alphabetical' is neither 'natural', 'lexical' nor a file"):
        read(animals, preprocess=SMALL, num_classes=2, class_order="alphabetical")


def test_flagged_manifests_resolve_names_against_the_reference_folder(animals: Path) -> None:
    write(Path("flagged/a.png"), 99)
    Path("flagged/f.csv").write_text("path,label,true_label\na.png,dog,cat\n")
    names = class_names_of(animals)
    flagged = read("flagged/f.csv", preprocess=SMALL, num_classes=2, class_names=names)
    assert (flagged.examples[0].label, flagged.examples[0].true_label, flagged.examples[0].line) == (1, 0, 2)


def test_duplicates_keep_the_first_of_each_label_and_are_listed(animals: Path) -> None:
    (animals / "cat/copy.png").write_bytes((animals / "cat/1.png").read_bytes())
    (animals / "dog/copy.png").write_bytes((animals / "cat/1.png").read_bytes())
    (animals / "dog/copy2.png").write_bytes((animals / "cat/1.png").read_bytes())
    found = read(animals, preprocess=SMALL, num_classes=2)
    assert [e.source for e in found.examples].count("cat/copy.png") == 0
    assert len(found) == len(found.pixels) == 7
    assert found.duplicates == (
        "cat/copy.png (row 3): same content as cat/1.png (row 0), left out",
        "dog/copy2.png (row 7): same content as cat/1.png (row 0), kept: label 1, not 0",
        "dog/copy.png (row 8): same content as cat/1.png (row 0), left out",
    )
    for i, example in enumerate(found.examples):
        expected = torch.from_numpy(np.array(Image.open(animals / example.source))).permute(2, 0, 1)
        assert torch.equal(found.pixels[i], expected), example.source


def test_reference_never_overlaps_flagged(animals: Path) -> None:
    reference = read(animals, preprocess=SMALL, num_classes=2)
    (animals / "f.csv").write_text("path,label\ncat/2.png,1\ndog/1.png,1\n")
    flagged = read(animals / "f.csv", preprocess=SMALL, num_classes=2)
    rest, overlap = remove_overlap(reference, flagged)
    assert overlap == 2
    assert not {e.id for e in rest.examples} & {e.id for e in flagged.examples}
    assert torch.equal(rest.pixels, reference.pixels[[0, 2, 4, 5]])
    assert remove_overlap(rest, flagged)[0] is rest


def test_identity_survives_renaming_and_resizing(animals: Path) -> None:
    before = read(animals, preprocess=SMALL, num_classes=2)
    (animals / "cat/1.png").rename(animals / "cat/0.png")
    after = read(animals, preprocess=Preprocess((3, 5, 5)), num_classes=2)
    assert before.sha256 == after.sha256


def test_what_was_listed_once_is_read_again_from_that_list(animals: Path, tmp_path: Path) -> None:
    known: Known = {}
    rows = tmp_path / "rows.txt"
    rows.write_text("0\n", encoding="utf-8")
    whole = read(animals, preprocess=SMALL, num_classes=2, known=known)
    with mock.patch("memaudit.data.sources._list", side_effect=AssertionError("listed again")):
        few = read(animals, preprocess=SMALL, num_classes=2, known=known, limit=1)
        one = read(rows, data=animals, preprocess=SMALL, num_classes=2, known=known)
        again = read(animals, preprocess=SMALL, num_classes=2, known=known)
        with pytest.raises(AssertionError, match="listed again"):
            read(animals, preprocess=SMALL, num_classes=3, known=known)
    assert (len(few), len(one), again.sha256) == (1, 1, whole.sha256)


def test_a_limit_takes_rows_evenly_and_counts_the_rest(animals: Path) -> None:
    found = read(animals, preprocess=SMALL, num_classes=2, limit=2)
    assert [e.source for e in found.examples] == ["cat/1.png", "dog/1.png"]
    assert found.omitted == 4


def test_progress_counts_every_image(animals: Path) -> None:
    ticks: list[tuple[int, int]] = []
    read(animals, preprocess=SMALL, num_classes=2, progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (Preprocess((3, 8, 8), interpolation="random"), "unknown interpolation 'random'"),
        (Preprocess((3, 8, 8), crop_mode="corner"), "unknown crop mode 'corner'"),
        (Preprocess((3, 0, 8)), "input size 3x0x8"),
        (Preprocess((3, 8, 8), crop_pct=float("nan")), "crop_pct nan"),
        (Preprocess((4, 8, 8)), "the network takes 4 channels"),
    ],
)
def test_a_preprocessing_no_image_can_have_is_a_usage_error(
    animals: Path, preprocess: Preprocess, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(animals, preprocess=preprocess, num_classes=2)


def rows_of_labels(*counts: int) -> Listing:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return Listing("set", tuple(Row(f"{n}.png", label, n) for n, label in enumerate(labels)), ())


@pytest.mark.parametrize(
    ("counts", "size", "taken"),
    [
        ((60, 30, 10), 10, [6, 3, 1]),
        ((60, 30, 10), 12, [7, 4, 1]),  # 7.2, 3.6, 1.2
        ((97, 2, 1), 10, [8, 1, 1]),  # 9.7, 0.2, 0.1
        ((5, 5, 5), 2, [1, 1, 0]),
        ((4, 3), 7, [4, 3]),
        ((4, 3), 100, [4, 3]),
    ],
)
def test_a_sample_has_each_label_in_proportion_and_is_the_same_each_time(
    counts: tuple[int, ...], size: int, taken: list[int]
) -> None:
    listing = rows_of_labels(*counts)
    found = listing.sampled(size)
    assert [sum(row.label == label for row in found.rows) for label in range(len(counts))] == taken
    assert found == listing.sampled(size)
    places = [row.index for row in found.rows]
    assert places == sorted(set(places))


def test_rows_of_a_sample_are_drawn_not_the_first() -> None:
    drawn = [row.index for row in rows_of_labels(10_000).sampled(1000).rows]
    assert abs(sum(drawn) / 1000 - 4999.5) < 4 * 2887 / 1000**0.5
    assert len(set(np.diff(drawn))) > 10


def test_only_a_sample_is_decoded_and_the_set_says_of_how_many(animals: Path) -> None:
    ticks: list[tuple[int, int]] = []
    found = read(animals, preprocess=SMALL, num_classes=2, sample=3, progress=lambda *at: ticks.append(at))
    assert (len(found), found.drawn_from, found.omitted, ticks[-1]) == (3, 6, 0, (3, 3))
    assert read(animals, preprocess=SMALL, num_classes=2, sample=6).drawn_from is None
