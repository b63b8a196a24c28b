"""What an audit has measured so far, batch by batch, so that the same command goes on where it stopped.

`journal.jsonl` is only ever appended to. Each line is `{"length":"…","crc":"…","record":…}`, with the bytes and the
CRC-32 of its record in hex; a last line that is torn is cut off. The first record says which run it belongs to. A
resumed run makes the same calls in the same order and is handed what they returned, bit for bit; the first call that is
not there is measured. Loops whose batches change tensors (a sum, a layer in training) keep those in two files
`journal.N.safetensors`, written in turn; only the loop that was cut short needs them.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from memaudit.checkpoints.source import opened
from memaudit.checkpoints.tensors import DTYPES, NAMES, read_tensors, write_tensors
from memaudit.errors import EnvironmentFault, ExitCode, MemauditError, UsageError
from memaudit.failpoints import failpoint
from memaudit.interrupts import Terminated
from memaudit.text import clean

FILE = "journal.jsonl"
VERSION = 1
# A killed process loses nothing that was written; a power cut loses at most so many seconds of it.
SYNC_EVERY = 0.2
# Tensors that batches change are kept after every batch up to this size, larger ones as often as it takes little time.
SMALL_STATE = 8 << 20
STATE_SHARE = 0.05

_PREFIX = len('{"length":"00000000","crc":"00000000","record":')
_KINDS = ("head", "batch", "change", "begin", "end")


@dataclass(frozen=True)
class Changing:
    """The tensors that the batches of a loop change.

    Attributes:
        save: them, by name, as they are now.
        load: puts back what `save` gave.
    """

    save: Callable[[], Mapping[str, Tensor]]
    load: Callable[[Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Batch:
    """One recorded batch: how many examples, and what its body returned."""

    size: int
    value: Any


class _Lines:
    """Kind, start and end of each line, in a few bytes a line: a long audit writes a hundred thousand."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._stops = array("Q")

    def __len__(self) -> int:
        return len(self._stops)

    def append(self, kind: str, stop: int) -> None:
        self._kinds.append(_KINDS.index(kind))
        self._stops.append(stop)

    def drop(self, number: int) -> None:
        """Line `number` and all after it."""
        del self._kinds[number:], self._stops[number:]

    def kind(self, number: int) -> str:
        return _KINDS[self._kinds[number]]

    def start(self, number: int) -> int:
        return self._stops[number - 1] if number else 0

    def stop(self, number: int) -> int:
        return self._stops[number]

    @property
    def end(self) -> int:
        """Where the next line starts."""
        return self.start(len(self))

    def of(self, *kinds: str, start: int = 0) -> list[int]:
        """The numbers of the lines of these kinds, from `start` on."""
        wanted = {_KINDS.index(kind) for kind in kinds}
        return [n for n in range(start, len(self)) if self._kinds[n] in wanted]


class Journal:
    """The journal of one run in one folder; the folder is locked by the caller.

    Args:
        folder: the output directory.
        run: what the run is made of, by name: hashes and settings. Another run's journal is refused.
        fresh: throw an older journal away.

    Attributes:
        recorded: batches that were there when it was opened.

    Raises:
        UsageError: the folder holds the journal of another run, or the file cannot be opened.
    """

    def __init__(self, folder: Path, run: Mapping[str, str], *, fresh: bool = False) -> None:
        self.path = folder / FILE
        self._states = (folder / "journal.0.safetensors", folder / "journal.1.safetensors")
        self._run = dict(run)
        self._file: BinaryIO | None = None
        self._lines = _Lines()
        self._at = 0
        self._slot = 0
        self._restored_at = -1  # where the state of an unfinished loop is put back
        self._saved_at, self._save_cost, self._synced = 0.0, 0.0, 0.0
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise UsageError(f"{clean(self.path)} is not a regular file", hint="Choose another --out.")
        if fresh:
            self.discard()
        elif self.path.exists():
            self._open()
        self.recorded = len(self._lines.of("batch", "change"))

    # ---- what the measuring code calls -----------------------------------------------------------------------------

    def next(self, key: str, changing: Changing | None = None) -> Batch | None:
        """The recorded batch that `key` names, if it is the next one; its changes are put back with it."""
        record = self._take("batch" if changing is None else "change", key)
        if record is None:
            return None
        if changing is not None and (state := record.get("state")) and self._at == self._restored_at:
            changing.load(self._read_state(state))
        return Batch(int(record["size"]), decode(record["value"]))

    def add(self, key: str, size: int, value: object, changing: Changing | None = None) -> None:
        """Append a batch that was just measured.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        if changing is None:
            self._append("batch", {"key": key, "size": size, "value": encode(value)})
        else:
            state = self._write_state(changing.save())
            self._append("change", {"key": key, "size": size, "value": encode(value), "state": state})

    def begin(self, key: str) -> Any | None:
        """Enter a loop whose result is recorded as a whole; that result if it is there, and then the loop is over."""
        first = self._at
        if self._take("begin", key) is None:
            self._append("begin", {"key": key})
            return None
        ends = self._lines.of("end", start=self._at)
        if ends:
            self._at = ends[0]
            record = self._take("end", key)
            if record is not None:
                return decode(record["value"])
            self._cut(first)
            self._append("begin", {"key": key})
            return None
        self._rewind_to_state()
        return None

    def end(self, key: str, value: object) -> None:
        """Leave a loop that `begin` entered, with its result."""
        self._append("end", {"key": key, "value": encode(value)})

    # ---- what the command calls ------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Remove the journal: the report is written, or there is nothing to go on with."""
        self.close(sync=False)
        for path in (self.path, *self._states):
            path.unlink(missing_ok=True)
        self._lines, self._at = _Lines(), 0
        failpoint("journal.removed")

    def close(self, *, sync: bool = True) -> None:
        """Flush to the disk and close."""
        if self._file is not None:
            if sync:
                self._sync()
            self._file.close()
            self._file = None

    def kept(self) -> str:
        """What an interrupted user is told; empty if there is nothing to go on from."""
        batches = len(self._lines.of("batch", "change"))
        return f"{batches} batches are kept in {clean(self.path)}" if batches else ""

    # ---- lines -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Check every line, cut a torn tail, and hold the first record against this run."""
        try:
            self._file = self.path.open("r+b")
        except OSError as error:
            raise UsageError(
                f"cannot open {clean(self.path)}: {clean(error.strerror)}", hint="Choose another --out, or --fresh."
            ) from None
        for kind, stop in _sound_lines(self._file):
            self._lines.append(kind, stop)
        head = self._record(0) if self._lines and self._lines.kind(0) == "head" else {}
        if head.get("version") != VERSION or not isinstance(head.get("run"), dict):
            self.discard()
            return
        if head["run"] != self._run:
            self.close(sync=False)
            raise _other_run(self.path, cast("dict[str, str]", head["run"]), self._run)
        self._at = 1
        self._file.truncate(self._lines.end)

    def _record(self, number: int) -> dict[str, Any]:
        assert self._file is not None  # noqa: S101 - lines exist only of an open file
        start = self._lines.start(number) + _PREFIX
        self._file.seek(start)
        record = json.loads(self._file.read(self._lines.stop(number) - start - len("}\n")))
        return cast("dict[str, Any]", next(iter(record.values())))

    def _take(self, kind: str, key: str) -> dict[str, Any] | None:
        """The next record, if it is that; otherwise this run went another way, and what follows is worth nothing."""
        if self._at >= len(self._lines):
            return None
        record = self._record(self._at) if self._lines.kind(self._at) == kind else {}
        if record.get("key") != key:
            self._cut(self._at)
            return None
        self._at += 1
        return record

    def _cut(self, number: int) -> None:
        """Drop line `number` and all after it."""
        if number < len(self._lines):
            self._lines.drop(number)
            assert self._file is not None  # noqa: S101
            self._file.truncate(self._lines.end)
        self._at = min(self._at, len(self._lines))

    def _append(self, kind: str, record: Mapping[str, object]) -> None:
        try:
            if self._file is None:
                failpoint("journal.create")
                self._file = self.path.open("w+b")
                self._append("head", {"version": VERSION, "run": self._run})
                failpoint("journal.header")
            self._cut(self._at)
            body = json.dumps({kind: record}, separators=(",", ":")).encode()
            line = b'{"length":"%08x","crc":"%08x","record":%s}\n' % (len(body), zlib.crc32(body), body)
            self._file.seek(self._lines.end)
            self._file.write(line[: len(line) // 2])
            self._file.flush()
            failpoint("journal.half")
            self._file.write(line[len(line) // 2 :])
            self._file.flush()
            failpoint("journal.line")
            if time.monotonic() - self._synced > SYNC_EVERY:
                self._sync()
        except OSError as error:
            raise _failed(self.path, error) from error
        self._lines.append(kind, self._lines.end + len(line))
        self._at = len(self._lines)

    def _sync(self) -> None:
        assert self._file is not None  # noqa: S101
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    # ---- changed tensors -------------------------------------------------------------------------------------------

    def _rewind_to_state(self) -> None:
        """Find the last batch of an unfinished loop whose changes can be put back; later changing ones are dropped."""
        changes = self._lines.of("change", start=self._at)
        self._restored_at = -1
        for position in reversed(range(len(changes))):
            state = self._record(changes[position]).get("state")
            if state and self._is_sound(state):
                self._restored_at = changes[position] + 1  # `_at` once that record is taken
                self._slot = 1 - int(state["slot"])
                changes = changes[position + 1 :]
                break
        if changes:
            self._cut(changes[0])

    def _is_sound(self, state: Mapping[str, Any]) -> bool:
        try:
            with self._states[int(state["slot"])].open("rb") as file:
                return _crc(file) == int(state["crc"])
        except OSError:
            return False

    def _read_state(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        with opened(self._states[int(state["slot"])]) as source:
            return read_tensors(source)[0]

    def _write_state(self, tensors: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Keep `tensors`, unless they are large and were kept a moment ago."""
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        start = time.monotonic()
        if size > SMALL_STATE and start - self._saved_at < self._save_cost / STATE_SHARE:
            return None
        slot = self._slot
        try:
            with self._states[slot].open("w+b") as file:
                write_tensors({n: t.detach().cpu() for n, t in tensors.items()}, {}, file)
                file.flush()
                file.seek(0)
                crc = _crc(file)
                failpoint("journal.state")
        except OSError as error:
            raise _failed(self._states[slot], error) from error
        self._slot = 1 - slot
        self._saved_at = time.monotonic()
        self._save_cost = self._saved_at - start
        return {"slot": slot, "crc": crc}


@contextmanager
def journalled(folder: Path, run: Mapping[str, str], *, fresh: bool = False) -> Iterator[Journal]:
    """A journal that is kept when the body is interrupted or the machine fails, and removed when the input is refused.

    The caller removes it (`discard`) once everything is written.
    """
    journal = Journal(folder, run, fresh=fresh)
    try:
        yield journal
    except MemauditError as error:
        if error.exit_code in (ExitCode.USAGE, ExitCode.REJECTED, ExitCode.INCOMPLETE):
            journal.discard()
        elif journal.kept():
            error.add_note(journal.kept())
        raise
    except (KeyboardInterrupt, Terminated) as stopped:
        if journal.kept():
            stopped.add_note(journal.kept())
        raise
    finally:
        journal.close()


def encode(value: object) -> Any:
    """Tensors, and plain containers of them, as JSON that `decode` reads back bit for bit; tuples become lists."""
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        content = dense.flatten().view(torch.uint8).numpy().tobytes() if dense.numel() else b""
        return {"tensor": [NAMES[dense.dtype], list(dense.shape), base64.b64encode(content).decode()]}
    if isinstance(value, Mapping):
        return {"table": {str(k): encode(v) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a batch may not return a {type(value).__name__}")


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "table" in value:
        return {k: decode(v) for k, v in value["table"].items()}
    dtype, shape, text = value["tensor"]
    content = bytearray(base64.b64decode(text))
    flat = torch.frombuffer(content, dtype=DTYPES[dtype]) if content else torch.empty(0, dtype=DTYPES[dtype])
    return flat.reshape(shape)


def _sound_lines(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Kind and end of each line whose length and checksum hold, up to the first one that does not."""
    file.seek(0)
    start = 0
    for line in file:
        body = line[_PREFIX:-2]
        sound = b'{"length":"%08x","crc":"%08x","record":%s}\n' % (len(body), zlib.crc32(body), body) == line
        kind = body[2 : body.find(b'"', 2)].decode("ascii", "replace")
        if not sound or kind not in _KINDS:
            return
        start += len(line)
        yield kind, start


def _crc(file: BinaryIO) -> int:
    crc = 0
    while part := file.read(1 << 22):
        crc = zlib.crc32(part, crc)
    return crc


def _other_run(path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> UsageError:
    """The refusal to go on with another run's measurements; it says what differs."""
    different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    lines = [f"{name}: {_short(old.get(name))} then, {_short(new.get(name))} now" for name in different]
    return UsageError(
        f"{clean(path)} was begun with another {', '.join(clean(name) for name in different)}",
        hint="Repeat that command to go on, add --fresh to throw it away, or choose another --out.",
        details=lines,
    )


def _short(value: str | None) -> str:
    text = "none" if value is None else clean(value)
    return text[:12] if len(text) == 64 else text


def _failed(path: Path, error: OSError) -> EnvironmentFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EnvironmentFault(
        f"cannot write {clean(path)}: {os.strerror(error.errno or errno.EIO)}",
        hint="Free some space and run the same command again."
        if full
        else "Run the same command again, or change --out.",
    )
