"""Opening a pickle in a throw-away process: bombs, crashes and hangs end there, as one line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from memaudit.checkpoints.archive import MAX_PICKLE, read_pickle
from memaudit.checkpoints.opcodes import PICKLES, looks_honest, scan, scan_legacy
from memaudit.checkpoints.sniff import SAVE_AGAIN, TORCH_SUFFIXES, Kind
from memaudit.checkpoints.source import Source
from memaudit.checkpoints.types import Weights
from memaudit.errors import EnvironmentFault, MemauditError, ModelRejected, UsageError
from memaudit.system import isolated
from memaudit.text import clean

if TYPE_CHECKING:
    from torch import Tensor

# What an honest file costs the child beyond importing torch, with room to spare on a slow machine.
CPU_BASE, CPU_PER_BYTE, CPU_PER_OPCODE = 2.0, 2e-8, 1e-5  # seconds
WALL_BASE, WALL_PER_BYTE = 90.0, 1e-7  # seconds; importing torch from a cold disk is most of it
# A trusted file may be compressed, and may import packages of its own: bytes, seconds.
TRUSTED_EXTRA, TRUSTED_CPU = 1 << 30, 120.0
MAX_ERROR = 1 << 16  # bytes of a refusal the child may write
# How the child ends when it did not succeed and did not crash (Python itself uses 1 and 2).
REFUSED, DISK_FULL = 10, 11


@dataclass(frozen=True)
class Opened:
    """What the child handed over: plain tensors, what the file says about itself (raw, unchecked), which weights."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    weights: Weights


def open_pickle(source: Source, kind: Kind, weights: Weights | None) -> Opened:
    """The weights of a torch checkpoint.

    Args:
        source: the open file; the child reads the same descriptor.
        kind: `torch-zip` or `torch-legacy`.
        weights: which to take where the file holds both; `None` refuses to choose.

    Raises:
        ModelRejected: unsafe, broken, or not weights.
        UsageError: raw and averaged weights are both there and differ, or the chosen ones are not there.
        EnvironmentFault: the child cannot be started, or its output not be written.
    """
    pickle = read_pickle(source) if kind == "torch-zip" else source.read(0, MAX_PICKLE)
    try:
        count = scan(pickle, source.name) if kind == "torch-zip" else scan_legacy(pickle, source.name)
    except ModelRejected as error:
        if error.hint == SAVE_AGAIN and looks_honest(pickle, 1 if kind == "torch-zip" else PICKLES):
            raise ModelRejected(error.message, hint=_converting(source)) from error
        raise
    request: dict[str, object] = {
        "name": source.name,
        "weights": weights,
        "size": source.size,
        "cpu": CPU_BASE + CPU_PER_BYTE * source.size + CPU_PER_OPCODE * count,
    }
    return _open_in_child(source, request)


def _converting(source: Source) -> str:
    """How to open a pickle that its user vouches for; the digest is that of the file as it is."""
    stem = next((source.path.name[: -len(s)] for s in TORCH_SUFFIXES if source.path.name.lower().endswith(s)), "model")
    target = source.path.with_name(f"{stem}.safetensors")
    paths = " ".join(shlex.quote(clean(p)) for p in (source.path, target))
    return (
        f"if you know who made it, and that the digest is theirs: memaudit convert --trust-pickle "
        f"--sha256 {source.sha256()} {paths}; otherwise {SAVE_AGAIN}"
    )


def open_trusted(source: Source, sha256: str, weights: Weights | None, imports: Path | None = None) -> Opened:
    """The weights of a pickle that its user vouches for: its code runs, in the child and within its limits.

    Args:
        sha256: the digest the file must have, 64 lower-case hex digits; the child is given the descriptor it was
            taken through.
        imports: a folder whose Python files the pickle may name.

    Raises:
        ModelRejected: another file, broken, or not weights.
        UsageError, EnvironmentFault: as `open_pickle`.
    """
    if (found := source.sha256()) != sha256:
        raise ModelRejected(
            f"{source.name} is not the file that --sha256 names: it has {found}",
            hint="fetch it again from whoever published that digest",
        )
    size = TRUSTED_EXTRA + 4 * source.size
    request: dict[str, object] = {
        "name": source.name,
        "weights": weights,
        "size": size,
        "cpu": TRUSTED_CPU,
        "trusted": True,
        "imports": None if imports is None else str(imports.resolve()),
    }
    return _open_in_child(source, request)


def _open_in_child(source: Source, request: dict[str, object]) -> Opened:
    """Run the child and take what it hands over, or say why it did not."""
    with tempfile.TemporaryFile() as output:
        status = _run_child(source, request, output)
        size = os.fstat(output.fileno()).st_size
        if status == REFUSED and size <= MAX_ERROR:
            output.seek(0)
            raise _as_error(output.read(), source)
        if status == DISK_FULL:
            raise EnvironmentFault(
                f"no room for the tensors of {source.name} in {clean(tempfile.gettempdir())}",
                hint="free space there, or set TMPDIR to a directory with more",
            )
        if status != 0:
            raise _crash(source, status)
        return _collect(Source(source.path, output.fileno()))


def _run_child(source: Source, request: dict[str, object], output: BinaryIO) -> int:
    """The child's exit status, negative for the signal that ended it.

    Args:
        source: becomes the child's stdin.
        request: see `child.main`.
        output: becomes its stdout: an unnamed file, so nothing is left behind whatever happens.
    """
    os.lseek(source.descriptor, 0, os.SEEK_SET)
    command = isolated.command("memaudit.checkpoints.child", request)
    child = isolated.start(command, f"reads {source.name}", source.descriptor, output)
    try:
        # The child's time goes into importing torch, which what follows needs here too: both do it at the same time.
        import torch  # noqa: F401

        return child.wait(WALL_BASE + WALL_PER_BYTE * source.size)
    except subprocess.TimeoutExpired as error:
        raise ModelRejected(
            f"{source.name}: reading it did not finish in {error.timeout:.0f} s", hint="do not trust this file"
        ) from error
    finally:
        child.kill()
        child.wait()


def _collect(handed: Source) -> Opened:
    """What the child wrote, read with the same distrust as any safetensors file."""
    from memaudit.checkpoints.tensors import read_tensors

    tensors, metadata, _ = read_tensors(handed)
    about = json.loads(metadata.get("about", "{}"))
    return Opened(
        tensors,
        about if isinstance(about, dict) else {},
        "ema" if metadata.get("weights") == "ema" else "raw",
    )


def _as_error(text: bytes, source: Source) -> MemauditError:
    """The child's refusal; its words pass the sanitiser again, the child has seen the pickle."""
    try:
        raw = json.loads(text)
        kind = UsageError if raw["kind"] == "UsageError" else ModelRejected
        details = [clean(line) for line in raw["details"]]
        return kind(clean(raw["message"], 1000), hint=clean(raw["hint"], 1000), details=details)
    except (ValueError, KeyError, TypeError):
        return _crash(source, REFUSED)


def _crash(source: Source, status: int) -> MemauditError:
    """The error for a child that was stopped by a limit or broke down."""
    if status == -getattr(signal, "SIGXCPU", 0) or status == -getattr(signal, "SIGKILL", 0):
        why = "reading it takes far more time or memory than its size justifies"
    elif status == -getattr(signal, "SIGXFSZ", 0):
        why = "it unpacks to far more than its size"
    elif status < 0:
        why = f"reading it crashed the reader (signal {-status})"
    else:
        why = f"the reader failed on it (status {status})"
    return ModelRejected(f"{source.name}: {why}", hint="do not trust this file; fetch or save it again")
