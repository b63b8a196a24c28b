"""`python -m tests.real_inputs [WORD]`: run every situation (or those whose kind or name holds WORD), print a table."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.real_inputs.harness import check, every


def main() -> int:
    """1 where a situation ended otherwise than it must."""
    words = sys.argv[1:]
    torch.set_num_threads(1)
    cases = [c for c in every() if not words or any(w in f"{c.kind} {c.name}" for w in words)]
    failed, began = 0, time.monotonic()
    print(f"{'kind':<15}{'case':<66}{'expected':<60}got")
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases):
            place = Path(scratch) / str(number)
            place.mkdir()
            result = check(case, place)
            failed += bool(result.faults)
            got = "; ".join((result.got, *result.faults)) if result.faults else f"{result.got}, as expected"
            print(f"{case.kind:<15}{case.name[:64]:<66}{str(case.expected)[:58]:<60}{got}", flush=True)
    print(f"{len(cases)} situations, {failed} failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
