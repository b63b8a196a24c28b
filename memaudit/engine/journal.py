"""What an audit has measured so far, batch by batch, so that the same command goes on where it stopped.

`journal.jsonl` is only ever appended to. Each line is `{"length":"…","crc":"…","record":…}`, with the bytes and the
CRC-32 of its record in hex; a last line that is torn is cut off. The first record says which run it belongs to. A
resumed run makes the same calls in the same order and is handed what they returned, bit for bit; the first call that is
not there is measured. Loops whose batches change tensors (a sum, a layer in training) keep those in two files
`journal.N.safetensors`, written in turn; only the loop that was cut short needs them.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import Tensor

from memaudit.checkpoints.source import opened
from memaudit.checkpoints.tensors import read_tensors, write_tensors
from memaudit.engine.encoding import decode, encode
from memaudit.engine.lines import PREFIX, Lines, sound_lines
from memaudit.errors import EnvironmentFault, ExitCode, MemauditError, UsageError
from memaudit.system.failpoints import failpoint
from memaudit.system.interrupts import Terminated
from memaudit.text import clean

FILE = "journal.jsonl"
VERSION = 1
# A killed process loses nothing that was written; a power cut loses at most so many seconds of it.
SYNC_EVERY = 0.2
# Tensors that batches change are kept after every batch up to this size, larger ones as often as it takes little time.
SMALL_STATE = 8 << 20
STATE_SHARE = 0.05


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


# Fast path; its slow twin: tests/twins.py.
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
        self._lines = Lines()
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

    def begin(self, key: str, *, again: bool = False) -> Any | None:
        """Enter a loop whose result is recorded as a whole; that result if it is there, and then the loop is over.

        Where it is not recorded, a loop that was left is gone through `again`, batch by batch.
        """
        first = self._at
        if self._take("begin", key) is None:
            self._append("begin", {"key": key})
            return None
        ends = self._lines.of("end", start=self._at)
        if not ends:
            self._rewind_to_state()
        elif not again:
            self._at = ends[0]
            if (record := self._take("end", key)) and record["value"] is not None:
                return decode(record["value"])
            self._cut(first)
            self._append("begin", {"key": key})
        return None

    def end(self, key: str, value: object) -> None:
        """Leave a loop that `begin` entered, with its result."""
        if self._take("end", key) is None:
            self._append("end", {"key": key, "value": encode(value)})

    # ---- what the command calls ------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Remove the journal: the report is written, or there is nothing to go on with."""
        self.close(sync=False)
        for path in (self.path, *self._states):
            path.unlink(missing_ok=True)
        self._lines, self._at = Lines(), 0
        failpoint("journal.removed")

    def close(self, *, sync: bool = True) -> None:
        """Flush to the disk and close."""
        if self._file is not None:
            if sync:
                self._sync()
            self._file.close()
            self._file = None

    def kept(self) -> str:
        """One line for a user who interrupted the run; empty if there is nothing to go on from."""
        batches = len(self._lines.of("batch", "change"))
        return f"{batches} batches are kept in {clean(self.path)}" if batches else ""

    # ---- lines -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Check every line, cut a torn tail, and compare the first record with this run."""
        try:
            self._file = self.path.open("r+b")
        except OSError as error:
            raise UsageError(
                f"cannot open {clean(self.path)}: {clean(error.strerror)}", hint="Choose another --out, or --fresh."
            ) from None
        for kind, stop in sound_lines(self._file):
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
        start = self._lines.start(number) + PREFIX
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
            # Written over, not emptied first: a file system that gives back and takes room at every step takes longer.
            with open(os.open(self._states[slot], os.O_RDWR | os.O_CREAT, 0o600), "w+b") as file:
                write_tensors({n: t.detach().cpu() for n, t in tensors.items()}, {}, file)
                file.truncate()
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
