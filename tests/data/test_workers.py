"""The processes that decode images: what they return, and what becomes of a file that brings one down."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memaudit.data import Preprocess, read
from memaudit.data.images import RowError, Unreadable
from memaudit.data.images.decoding import MAX_SCANS, decode
from memaudit.data.images.geometry import at_size
from memaudit.data.images.worker import as_array
from memaudit.data.images.workers import Workers, end_shared
from memaudit.data.ondemand import THREADS
from tests.data.test_images import encoded, png_header
from tests.data.test_read import SMALL, picture, write

pytestmark = pytest.mark.processes

GOOD = encoded(picture(3, (13, 7)), "PNG")
CHANNELS, HEIGHT, WIDTH = SMALL.input_size


def children() -> list[int]:
    """Processes that this one has started and that decode images."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            ours = parent == os.getpid() and "memaudit.data.images.worker" in (entry / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if ours:
            found.append(int(entry.name))
    return found


def test_pixels_are_those_of_decoding_here() -> None:
    with Workers(SMALL) as workers:
        found, _ = workers.decode(GOOD, ".png")
    assert np.array_equal(found, as_array(at_size(decode(GOOD, ".png", CHANNELS), SMALL)))


def test_every_field_of_the_geometry_reaches_the_process() -> None:
    odd = Preprocess((1, 9, 5), crop_pct=0.7, interpolation="box", crop_mode="border", mean=(0.3,), std=(1.0,))
    with Workers(odd) as workers:
        found, _ = workers.decode(GOOD, ".png")
    assert np.array_equal(found, as_array(at_size(decode(GOOD, ".png", 1), odd)))


def test_one_process_serves_one_after_the_other_and_ends_with_the_pool() -> None:
    with Workers(SMALL) as workers:
        for _ in range(3):
            workers.decode(GOOD, ".png")
            assert len(children()) == 1
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: workers.decode(GOOD, ".png"), range(20)))
        assert len(children()) <= 2
    assert not children()


def test_reasons_come_through_as_what_they_are() -> None:
    with Workers(SMALL) as workers:
        with pytest.raises(Unreadable, match="the file is empty"):
            workers.decode(b"", ".png")
        with pytest.raises(Unreadable, match="holds GIF"):
            workers.decode(b"GIF89a", ".jpg\udcff\u202e")
        with pytest.raises(RowError, match="100 megapixels"):
            workers.decode(png_header(10_000, 10_000), ".png")
        found = workers.decode_all([(b"", ".png"), (GOOD, ".png"), (png_header(10_000, 10_000), ".png"), (b"BM", "")])
        assert [type(one) for one in found] == [Unreadable, tuple, RowError, Unreadable]
        assert workers.decode_all([]) == []


def test_a_file_that_swells_is_unreadable_and_nothing_else() -> None:
    swelling = encoded(Image.new("RGB", (6000, 6000)), "PNG")
    with Workers(SMALL, memory=64 << 20) as workers:
        with pytest.raises(Unreadable, match=r"more memory than its size justifies|cannot be decoded"):
            workers.decode(swelling, ".png")
        workers.decode(GOOD, ".png")


def test_a_file_that_takes_for_ever_is_unreadable_and_nothing_else() -> None:
    """A progressive JPEG whose every scan is a pass over four components of 36 megapixels."""
    head, *scans = encoded(Image.new("CMYK", (6000, 6000)), "JPEG", progressive=True).split(b"\xff\xda")
    at = scans.index(max(scans, key=len))
    slow = b"\xff\xda".join([head, *scans[:at], *[scans[at]] * (MAX_SCANS - len(scans)), *scans[at:]])
    with Workers(SMALL, seconds=0) as workers:
        workers.decode(GOOD, ".png")
        with pytest.raises(Unreadable, match=r"more than 0 s of processor time"):
            workers.decode(slow, ".jpg")
        first, second, third = workers.decode_all([(GOOD, ".png"), (slow, ".jpg"), (GOOD, ".png")])
    assert "more than 0 s of processor time" in str(second), "one file costs no other that it was sent with"
    assert not isinstance(first, Exception)
    assert not isinstance(third, Exception)
    assert np.array_equal(first[0], third[0])


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGSEGV, "signal 11"), (signal.SIGKILL, "signal 9")])
def test_a_crash_costs_one_image(number: signal.Signals, reason: str) -> None:
    with Workers(SMALL) as workers:
        workers.decode(GOOD, ".png")
        (child,) = children()
        os.kill(child, number)
        with pytest.raises(Unreadable, match=f"crashed the decoder .{reason}"):
            workers.decode(GOOD, ".png")
        workers.decode(GOOD, ".png")


def test_a_hang_ends_after_a_while() -> None:
    with Workers(SMALL, patience=0.5) as workers:
        workers.decode(GOOD, ".png")
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(Unreadable, match=r"did not finish in [01] s"):
            workers.decode(GOOD, ".png")
        assert time.monotonic() - start < 5
        assert not children()


def test_a_set_goes_on_without_the_images_that_brought_a_process_down(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"set/a/{number:02d}.png", number)
    (tmp_path / "set/a/05.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    found = read(tmp_path / "set", preprocess=SMALL, num_classes=1)
    assert (len(found), len(found.unreadable)) == (29, 1)
    first = set(children())
    assert 1 <= len(first) <= THREADS
    read(tmp_path / "set", preprocess=replace(SMALL, std=(0.5,) * CHANNELS), num_classes=1)
    assert len(children()) <= THREADS, "those of one set decode the next"
    assert first <= set(children())
    end_shared()
    assert not children()
    assert len(read(tmp_path / "set", preprocess=SMALL, num_classes=1)) == 29


def test_torch_is_not_loaded_there() -> None:
    code = "import sys, memaudit.data.images.worker, memaudit.data.images.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_orphan_ends_by_itself() -> None:
    """kill -9 of the audit leaves no process behind: the end of its input ends it."""
    code = (
        "import os, sys\nfrom memaudit.data.images.preprocess import Preprocess\n"
        "from memaudit.data.images.workers import Workers\n"
        "workers = Workers(Preprocess((3, 4, 4)))\nworkers.decode(sys.stdin.buffer.read(), '.png')\n"
        "print(workers._idle.get().process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=GOOD, capture_output=True, check=False)
    assert done.returncode == -9
    child, end = int(done.stdout), time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_largest_honest_images_pass() -> None:
    """40 megapixels with alpha, as CMYK, and turned; within the default limits."""
    rng = np.random.default_rng(0)
    tile = Image.fromarray(rng.integers(0, 255, (500, 800, 4), dtype=np.uint8), "RGBA")
    large = tile.resize((8000, 5000), Image.Resampling.NEAREST)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        ".png": encoded(large, "PNG", compress_level=1),
        ".jpg": encoded(large.convert("CMYK"), "JPEG", quality=60),
        ".tif": encoded(large.convert("RGB"), "TIFF", exif=turned),
    }
    with Workers(SMALL) as workers:
        for suffix, content in files.items():
            assert workers.decode(content, suffix)[0].shape == SMALL.input_size, suffix


def test_io_of_a_pool_is_bounded_by_what_is_asked() -> None:
    """A large file whose decoder ends before it has read it: an error, not a hang."""
    with Workers(SMALL) as workers:
        workers.decode(GOOD, ".png")
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        with pytest.raises(Unreadable, match="crashed"):
            workers.decode(bytes(io.DEFAULT_BUFFER_SIZE * 4096), ".png")
