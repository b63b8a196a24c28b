"""The lines of a journal: which are sound, of what kind they are, and where each one starts."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from typing import BinaryIO

PREFIX = len('{"length":"00000000","crc":"00000000","record":')


KINDS = ("head", "batch", "change", "begin", "end")


class Lines:
    """Kind, start and end of each line, in a few bytes a line: a long audit writes a hundred thousand."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._stops = array("Q")

    def __len__(self) -> int:
        return len(self._stops)

    def append(self, kind: str, stop: int) -> None:
        """A line of this kind, which ends at byte `stop`."""
        self._kinds.append(KINDS.index(kind))
        self._stops.append(stop)

    def drop(self, number: int) -> None:
        """Line `number` and all after it."""
        del self._kinds[number:], self._stops[number:]

    def kind(self, number: int) -> str:
        """What line `number` holds, one of `KINDS`."""
        return KINDS[self._kinds[number]]

    def start(self, number: int) -> int:
        """The byte at which line `number` begins."""
        return self._stops[number - 1] if number else 0

    def stop(self, number: int) -> int:
        """The byte after line `number`."""
        return self._stops[number]

    @property
    def end(self) -> int:
        """Where the next line starts."""
        return self.start(len(self))

    def of(self, *kinds: str, start: int = 0) -> list[int]:
        """The numbers of the lines of these kinds, from `start` on."""
        wanted = {KINDS.index(kind) for kind in kinds}
        return [n for n in range(start, len(self)) if self._kinds[n] in wanted]


def sound_lines(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Kind and end of each line whose length and checksum hold, up to the first one that does not."""
    file.seek(0)
    start = 0
    for line in file:
        body = line[PREFIX:-2]
        sound = b'{"length":"%08x","crc":"%08x","record":%s}\n' % (len(body), zlib.crc32(body), body) == line
        kind = body[2 : body.find(b'"', 2)].decode("ascii", "replace")
        if not sound or kind not in KINDS:
            return
        start += len(line)
        yield kind, start
