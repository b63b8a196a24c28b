"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# Blocks as a network's, each followed by something small that stays: what is free then lies in pieces.
SCRIPT = """
from pathlib import Path
from memaudit.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

big, small = [bytearray(30 << 20)], []
del big[0]  # from now on blocks of this size come from the heap
for _ in range(64):
    big.append(bytearray(b"1") * (4 << 20))
    small.append(bytearray(65536))
del big
before = resident()
give_back()
print(before, resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_freed_memory_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 200, before  # freed and kept
    assert after < before - 200


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from memaudit.memory import give_back

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    give_back()
    monkeypatch.setattr(sys, "platform", "darwin")
    give_back()
