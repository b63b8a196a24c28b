"""`python -m tests.hostile [--exec] [WORD]`: run every case (or those whose kind or name holds WORD), print a table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from tests.hostile.cases import clear, every
from tests.hostile.harness import check, prepare


def main() -> int:
    """How many cases failed, at most 1."""
    words = [w for w in sys.argv[1:] if not w.startswith("-")]
    torch.set_num_threads(1)
    cases = [c for c in every() if not words or any(w in f"{c.kind} {c.name}" for w in words)]
    failed, slowest, largest = 0, 0.0, 0
    print(f"{'kind':<12}{'case':<36}{'exit':>5}{'seconds':>9}{'MiB':>7}  result")
    with tempfile.TemporaryDirectory() as scratch:
        base = prepare(Path(scratch) / "base")
        for number, case in enumerate(cases):
            place = Path(scratch) / str(number)
            place.mkdir()
            result = check(base, case, place, exec_="--exec" in sys.argv)
            clear(place)
            verdict = "; ".join(result.faults) or "ok"
            failed += bool(result.faults)
            slowest, largest = max(slowest, result.seconds), max(largest, result.memory)
            shown = case.name[:34].encode("ascii", "backslashreplace").decode()
            print(
                f"{case.kind:<12}{shown:<36}{result.code:>5}{result.seconds:>9.2f}{result.memory >> 20:>7}  {verdict}"
            )
            if result.faults:
                print(f"    {result.said}")
            sys.stdout.flush()
    print(f"{len(cases)} cases, {failed} failed; slowest {slowest:.2f} s, largest {largest >> 20} MiB")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
