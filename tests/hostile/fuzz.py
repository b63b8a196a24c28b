"""`python -m tests.hostile.fuzz [--executions N] [--seed S]`: mutated safetensors headers and mutated pickles.

Every mutant of a safetensors file goes through the strict pass and, where that accepts it, through the library too:
both must read the same. Every mutant of a torch archive, and every archive around a mutated pickle, goes through the
checks and the pre-scan; what they accept is opened by the child's own code, in a fork with the child's limits, and what
that hands over must be what `torch.load(weights_only=True)` reads. Nothing may crash, hang or need more memory than the
limit. `--atheris` runs the same targets under a coverage-guided fuzzer, where `atheris` is installed; it is not part of
CI.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save

from memaudit.checkpoints import child, sandbox
from memaudit.checkpoints.archive import read_pickle
from memaudit.checkpoints.opcodes import OPCODES, scan
from memaudit.checkpoints.source import opened
from memaudit.checkpoints.tensors import read_tensors
from memaudit.errors import MemauditError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(3)}
MEMORY = 2 << 30  # bytes of address space beyond what is mapped when the run begins
SECONDS = 5.0  # for one mutant
TOKENS = [
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"F32"', b'"BF16"', b'"BOOL"', b"[]", b"{}", b"null", b"-1", b"1e9"),
    *(b"18446744073709551615", b'"__metadata__"', b"\\u0000", b"[0,8]", b"[4,12]", b",", b":", b'"w"', b"NaN"),
]
PICKLES = [
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"R", b"b", b"\x81", b"(", b"t"),
    *(
        b"\x85",
        b"}",
        b"]",
        b".",
        b"Q",
        b"\x8a\x04\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"h\x00",
        b"q\x00",
        b"u",
        b"s",
    ),
]


def mutate(content: bytes, draw: random.Random, tokens: list[bytes], first: int, last: int) -> bytes:
    """`content` with one to four changes between `first` and `last`: bits, bytes, cuts, repeats, tokens, lengths."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        where = draw.randrange(first, max(first + 1, min(last, len(data))))
        how = draw.randrange(7)
        if how == 0 and where < len(data):
            data[where] ^= 1 << draw.randrange(8)
        elif how == 1 and where < len(data):
            data[where] = draw.randrange(256)
        elif how == 2:
            del data[where : where + draw.randint(1, 8)]
        elif how == 3:
            data[where:where] = data[where : where + draw.randint(1, 32)]
        elif how == 4:
            data[where:where] = draw.choice(tokens)
        elif how == 5:
            token = draw.choice(tokens)
            data[where : where + len(token)] = token
        elif draw.random() < 0.1:
            del data[where:]
    return bytes(data)


def _refused(refusal: MemauditError) -> str:
    if not refusal.message.isprintable() or not refusal.hint.isprintable():
        raise ValueError(f"a refusal that is not printable: {refusal.message!r}")
    return "refused"


def header(content: bytes, path: Path) -> str:
    """What became of one safetensors file; raises where the two readers disagree."""
    path.write_bytes(content)
    try:
        with opened(path) as source:
            tensors, metadata, _ = read_tensors(source)
    except MemauditError as refusal:
        return _refused(refusal)
    theirs = load(content)  # SafetensorError here: we accepted what the library does not
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        other = theirs[name]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), name
        assert (
            other.contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8))
            or not other.numel()
        )
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    return "accepted"


def archive(content: bytes, path: Path) -> str:
    """What became of one torch archive: refused by the checks, refused by the child, or read as torch reads it."""
    path.write_bytes(content)
    try:
        with opened(path) as source:
            count = scan(read_pickle(source), source.name)
    except MemauditError as refusal:
        return _refused(refusal)
    cpu = sandbox.CPU_BASE + sandbox.CPU_PER_BYTE * len(content) + sandbox.CPU_PER_OPCODE * count
    request = {"name": path.name, "weights": None, "size": len(content), "cpu": cpu}
    handed = path.with_suffix(".handed")
    status = _in_fork(request, path, handed)
    if status == sandbox.REFUSED:
        return "refused by the child"
    if status != 0:
        raise RuntimeError(f"the child ended with {status}")
    ours, theirs = load(handed.read_bytes()), _tables(torch.load(path, map_location="cpu", weights_only=True))
    if not any(_same(ours, table) for table in theirs):
        raise RuntimeError("the child hands over other tensors than torch reads")
    return "accepted"


def prescan(content: bytes, path: Path) -> str:
    """What became of one pickle at the pre-scan alone, without a file or a process: what `--atheris` has time for."""
    try:
        scan(content, path.name)
    except MemauditError as refusal:
        return _refused(refusal)
    assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= OPCODES
    return "accepted"


def _in_fork(request: dict[str, object], path: Path, handed: Path) -> int:
    """The exit status of `child.main` in a fork of this process, negative for the signal that ended it."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            os.dup2(os.open(path, os.O_RDONLY), 0)
            os.dup2(os.open(handed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stdin, sys.argv = os.fdopen(0), ["", json.dumps(request)]
            child.main()
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        finally:
            os._exit(code)
    end = time.monotonic() + 10 * SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise RuntimeError("the child hangs")


def _tables(content: Any) -> list[dict[str, torch.Tensor]]:
    """Every dictionary of tensors in `content`, itself included."""
    if not isinstance(content, dict):
        return []
    own = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return [own, *(table for value in content.values() for table in _tables(value))]


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""

    return ours.keys() == theirs.keys() and all(
        (ours[k].dtype, ours[k].shape, bits(ours[k])) == (v.dtype, v.shape, bits(v)) for k, v in theirs.items()
    )


def stream(content: bytes, path: Path) -> str:
    """What became of an archive that is sound but for its pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_archive())) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    became = archive(packed.getvalue(), path)
    if became == "accepted":
        assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= OPCODES
    return became


@cache
def _archive() -> bytes:
    packed = io.BytesIO()
    torch.save({"state_dict": WEIGHTS, "epoch": 3}, packed)
    return packed.getvalue()


def seeds() -> dict[str, tuple[bytes, Callable[[bytes, Path], str], list[bytes], int, int]]:
    """By target: a sound file, the target, what mutants are spiced with, and the bytes that are changed."""
    plain, whole = save(WEIGHTS, {"format": "pt"}), _archive()
    (length,) = struct.unpack("<Q", plain[:8])
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        pickle = file.read(next(n for n in file.namelist() if n.endswith("data.pkl")))
    return {
        "safetensors header": (plain, header, TOKENS, 0, 8 + length),
        "torch archive": (whole, archive, PICKLES, 0, len(whole)),
        "pickle": (pickle, stream, PICKLES, 0, len(pickle)),
    }


def run(target: str, executions: int, seed: int, folder: Path) -> Counter[str]:
    """So many mutants of one target; prints and saves the first one that breaks a promise.

    Raises:
        Exception: whatever the broken promise raised.
    """
    content, test, tokens, first, last = seeds()[target]
    draw, found = random.Random(seed), Counter[str]()
    path = folder / ("x.safetensors" if target.startswith("safe") else "x.pt")
    for number in range(executions):
        mutant = mutate(content, draw, tokens, first, last)
        start = time.monotonic()
        try:
            found[test(mutant, path)] += 1
        except BaseException:
            Path(f"finding-{number}.bin").write_bytes(mutant)
            raise
        if time.process_time() and time.monotonic() - start > SECONDS:
            found["slow"] += 1
    return found


def fuzz_with_atheris(target: str) -> None:
    """Coverage-guided, until stopped or something is found; arguments after `--` go to libFuzzer."""
    import atheris  # type: ignore[import-not-found]

    # Only what is fuzzed is instrumented, torch is not: this module is imported a second time, with its imports.
    for name in [n for n in sys.modules if n.startswith(("memaudit.checkpoints", "tests.hostile"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["memaudit.checkpoints"]):
        again = importlib.import_module("tests.hostile.fuzz")
    test = again.header if target.startswith("safe") else again.prescan
    path = Path(tempfile.mkdtemp()) / "x"
    given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    atheris.Setup([sys.argv[0], *given], lambda data: test(data, path))
    atheris.Fuzz()


def main() -> None:
    """Run all targets and print what became of the mutants."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(seeds()))
    parser.add_argument("--atheris", action="store_true")
    options, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    if options.atheris:
        fuzz_with_atheris(options.target or "safetensors header")
        return
    if Path("/proc/self/statm").exists():
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    for target in [options.target] if options.target else seeds():
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = run(target, options.executions, options.seed, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        figures = {
            "executions": options.executions,
            **found,
            "seconds": round(time.monotonic() - start),
            "peak_mib": peak,
        }
        print(json.dumps({"target": target, **figures}), flush=True)


if __name__ == "__main__":
    main()
