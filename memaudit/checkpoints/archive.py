"""What must hold for the zip archive around a torch pickle before anything in it is parsed. Loads no torch."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter

from memaudit.checkpoints.sniff import SAVE_AGAIN
from memaudit.checkpoints.source import Source
from memaudit.errors import ModelRejected
from memaudit.text import clean

MAX_MEMBERS = 200_000
MAX_DIRECTORY = 32 << 20  # bytes; about 100 per member, and `zipfile` makes an object of each before we can count them
MAX_PICKLE = 64 << 20  # the tensors' data is outside the pickle; a model of 5,000 tensors needs about 1 MB
_LOCAL_HEADER = 30  # bytes, before the name
_NAME_AND_EXTRA = struct.Struct("<HH")
_DESCRIPTORS = (0, 12, 16, 20, 24)  # bytes a data descriptor may take after a member
_END_RECORD = 22  # bytes of the zip's last record when it carries no comment


def read_pickle(source: Source) -> bytes:
    """The bytes of `data.pkl`, once the archive around it is sound.

    Raises:
        ModelRejected: members that are compressed, encrypted, repeated, overlapping or outside the one folder; bytes
            before, between or after them; a checksum that does not match; TorchScript; big-endian data.
    """
    members, directory = _members(source)
    prefix = members[0].filename.split("/")[0] + "/"
    names = {m.filename.removeprefix(prefix): m for m in members}
    for member in members:
        if not member.filename.startswith(prefix) or ".." in member.filename or "\\" in member.filename:
            raise _broken(source, f"the member {clean(member.filename)!r} is outside its folder")
    if "data.pkl" not in names:
        raise _broken(source, "it has no data.pkl: a zip, but not one torch wrote")
    if names["data.pkl"].file_size > MAX_PICKLE:
        raise _broken(source, f"its pickle has {names['data.pkl'].file_size:,} bytes, the limit is {MAX_PICKLE:,}")
    contents = _read_members(source, members, directory)
    if contents.get(f"{prefix}byteorder", b"little") != b"little":
        raise _broken(source, "its data is big-endian")
    return contents[f"{prefix}data.pkl"]


def _members(source: Source) -> tuple[list[zipfile.ZipInfo], int]:
    """The archive's members in file order, and where its directory starts; all of it only claimed so far."""
    try:
        with zipfile.ZipFile(_View(source)) as archive:
            members, comment, directory = archive.infolist(), archive.comment, archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise _broken(source, "no complete directory at its end; it is cut short or was changed") from error
    if comment or not source.read(source.size - _END_RECORD, 4) == b"PK\x05\x06":
        raise _broken(source, "bytes follow its directory")
    if not members or len(members) > MAX_MEMBERS:
        raise _broken(source, f"it has {len(members):,} members, the limit is {MAX_MEMBERS:,}")
    names = [m.filename for m in members]
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
        raise ModelRejected(f"{source.name} is a TorchScript archive, which holds code", hint=SAVE_AGAIN)
    twice, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise _broken(source, f"the member {clean(twice)!r} is there twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise _broken(source, f"the member {clean(member.filename)!r} is compressed; torch stores them as they are")
        if member.flag_bits & 0x61:  # bits 0, 5 and 6, which zipfile does not read either
            raise _broken(source, f"the member {clean(member.filename)!r} is encrypted or patched")
    return sorted(members, key=lambda m: m.header_offset), directory


def _read_members(source: Source, members: list[zipfile.ZipInfo], directory: int) -> dict[str, bytes]:
    """The contents of the small members, once all follow each other up to `directory` and match their checksums.

    Raises:
        ModelRejected: a gap, an overlap, or a member that is not what the directory says.
    """
    contents = {}
    position: set[int] = {0}
    # torch can leave every checksum out (set_crc32_options); then there is nothing to compare with.
    checked = any(m.CRC for m in members)
    for member in members:
        name = clean(member.filename)
        if member.header_offset not in position:
            raise _broken(source, f"bytes before the member {name!r} belong to no member")
        start = member.header_offset + _LOCAL_HEADER
        head = source.read(member.header_offset, _LOCAL_HEADER)
        if len(head) < _LOCAL_HEADER or not head.startswith(b"PK\x03\x04"):
            raise _broken(source, f"the member {name!r} has no header")
        name_length, extra_length = _NAME_AND_EXTRA.unpack(head[26:30])
        if source.read(start, name_length) != member.filename.encode():
            raise _broken(source, f"the member {name!r} has another name in its own header")
        start += name_length + extra_length
        end = start + member.file_size
        if end > source.size:
            raise _broken(source, f"the member {name!r} ends after the file: it is cut short")
        crc = 0
        parts = []
        for part in source.chunks(start, end):
            crc = zlib.crc32(part, crc)
            if member.filename.endswith(("/data.pkl", "/byteorder")):
                parts.append(part)
        if checked and crc != member.CRC:
            raise _broken(source, f"the member {name!r} does not match its checksum: the file was damaged or changed")
        contents[member.filename] = b"".join(parts)
        position = {end + n for n in _DESCRIPTORS}
    if directory not in position:
        raise _broken(source, "bytes after its last member belong to no member")
    return contents


class _View(io.RawIOBase):
    """A seekable view of a source, as `zipfile` wants one, over positional reads of limited size."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._source.size)[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        length = self._source.size - self._position if size < 0 else size
        if length > MAX_DIRECTORY:
            raise ValueError(f"a directory of {length:,} bytes")
        data = self._source.read(self._position, length)
        self._position += len(data)
        return data


def _broken(source: Source, why: str) -> ModelRejected:
    """The error for an archive that torch did not write like this, or that did not arrive whole."""
    return ModelRejected(f"{source.name} is not a sound torch archive: {why}", hint="fetch or save it again")
