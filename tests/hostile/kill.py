"""`python -m tests.hostile.kill [N]`: a scan with all audits is killed at every step and at N random moments (50).

First it is killed once at each of `failpoints.POINTS`. Then scans are killed five times in a row, at moments drawn over
the time they have left. Every one then runs to its end: its report must equal that of an uninterrupted scan outside
`volatile`, and nothing but the report may be left.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from memaudit.system import failpoints
from tests.conftest import train
from tests.pipeline.test_identity import prepare, report, scan

KILLS = 5


def main() -> int:
    """0 if every report was right."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    torch.set_num_threads(1)
    draw = random.Random(0)
    killed = wrong = rounds = 0
    with tempfile.TemporaryDirectory() as scratch:
        (ready := Path(scratch) / "ready").mkdir()
        prepare(ready, train())
        work = Path(scratch) / "work"
        start = time.monotonic()
        expected, whole = report(ready), seconds(ready, work)
        for point in failpoints.POINTS:
            fresh(ready, work)
            stopped = scan(work, **{failpoints.VARIABLE: point}).code
            right = stopped == -signal.SIGKILL and ends_right(work, expected)
            wrong += not right
            print(f"{point}: {'equal' if right else 'WRONG'}", flush=True)
        while killed < wanted:
            rounds += 1
            fresh(ready, work)
            spent = 0.0
            for _ in range(min(KILLS, wanted - killed)):
                moment = draw.uniform(0, max(0.2, whole - spent))
                killed += kill_after(work, moment)
                spent += moment
            right = ends_right(work, expected)
            wrong += not right
            volatile = json.loads((work / "report/report.json").read_text())["volatile"]
            verdict = "equal" if right else "WRONG"
            print(
                f"scan {rounds}: {killed} kills so far, {volatile['resumed_batches']} batches resumed, {verdict}",
                flush=True,
            )
    print(f"{killed} kills in {rounds} scans, {wrong} reports wrong, {time.monotonic() - start:.0f} s")
    return int(wrong > 0)


def ends_right(work: Path, expected: dict[str, object]) -> bool:
    """Whether the same command now ends with the expected report, and leaves nothing else."""
    code = scan(work).code
    left = {p.name for p in (work / "report").iterdir()}
    return code == 1 and report(work) == expected and left == {"report.json", "report.html"}


def fresh(ready: Path, work: Path) -> None:
    """`work` as a copy of `ready` without its report."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(ready, work)
    shutil.rmtree(work / "report")


def seconds(ready: Path, work: Path) -> float:
    """How long a whole scan takes here."""
    fresh(ready, work)
    start = time.monotonic()
    scan(work)
    return time.monotonic() - start


def kill_after(work: Path, moment: float) -> bool:
    """Start the scan and kill it after `moment` seconds; whether it was still running."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        code = scan(work).code
        os._exit(0 if code == 1 else 1)
    time.sleep(moment)
    running = os.waitpid(child, os.WNOHANG)[0] == 0
    if running:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return running


if __name__ == "__main__":
    sys.exit(main())
