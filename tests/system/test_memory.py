"""Freed memory is kept between batches and goes back to the system between stages."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Blocks as a network's; with something small that stays after each, what is free lies in pieces.
SCRIPT = """
import sys
from pathlib import Path
from contextlib import ExitStack
from memaudit.system.memory import give_back, keeping_freed

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

keep, pieces, ended = map(int, sys.argv[1:])
scope = ExitStack()
if keep:
    scope.enter_context(keeping_freed())
if ended:
    scope.close()
big, small = [bytearray(5 << 20)], []
del big[0]  # from now on blocks of this size come from the heap
for _ in range(50 if pieces else 12):
    big.append(bytearray(b"1") * (4 << 20))
    if pieces:
        small.append(bytearray(65536))
while big:
    del big[-1]
before = resident()
give_back()
print(before, resident())
"""


def residents(keep: bool, pieces: bool, ended: bool = False) -> list[int]:
    """MiB after freeing 200, or 48 in one piece, and after giving back."""
    command = [sys.executable, "-c", SCRIPT, *(str(int(flag)) for flag in (keep, pieces, ended))]
    return [int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_freed_memory_is_kept_and_goes_back_to_the_system() -> None:
    left, after = residents(keep=False, pieces=True)
    assert left > after + 150  # what lies in pieces is given back on demand alone
    dropped, _ = residents(keep=False, pieces=False)
    kept, after = residents(keep=True, pieces=False)
    assert kept > dropped + 30
    assert kept > after + 30
    left, _ = residents(keep=True, pieces=False, ended=True)
    assert kept > left + 30  # the caller's process is as it was


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from memaudit.system.memory import give_back, keeping_freed

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    give_back()
    with keeping_freed():
        pass
    monkeypatch.setattr(sys, "platform", "darwin")
    give_back()
