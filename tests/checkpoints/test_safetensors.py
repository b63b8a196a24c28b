"""Safetensors files that are not what they claim: each is refused before a tensor is made."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from memaudit.checkpoints import read
from memaudit.checkpoints import source as source_module
from memaudit.errors import ExitCode, MemauditError, ModelRejected

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**F32, **changes}}


BROKEN: list[tuple[str, bytes, str]] = [
    ("header of 2^63 bytes", raw(entry(), length=1 << 63), "its header claims"),
    ("header past the end", raw(entry(), length=4096), "its header claims"),
    ("header over the limit", raw(b"{" + b" " * (17 << 20) + b"}"), "the limit is"),
    ("header is a list", raw(b"{}x"), "not valid"),
    ("header is not UTF-8", raw(b'{"\xff": 1}'), "not valid"),
    ("header nests without end", raw(b'{"a":' * 100_000), "not valid"),
    ("key twice", raw(b'{"w": %s, "w": %s}' % ((json.dumps(F32).encode(),) * 2)), "appears twice"),
    ("NaN in the header", raw(b'{"w": NaN}'), "not JSON"),
    ("no tensors", raw({}), "holds no tensors"),
    ("only metadata", raw({"__metadata__": {"format": "pt"}}), "holds no tensors"),
    ("metadata of numbers", raw({"__metadata__": {"a": 1}, **entry()}), "__metadata__"),
    ("overlap", raw({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "overlaps"),
    ("hole", raw({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20), "hole"),
    ("hole at the start", raw(entry(data_offsets=[8, 16]), b"\0" * 16), "hole"),
    ("bytes after the data", raw(entry(), b"\0" * 9), "follow the last tensor"),
    ("cut data", raw(entry(), b"\0" * 7), "cut short"),
    ("shape larger than its bytes", raw(entry(shape=[10**12])), "has 8 bytes"),
    ("negative dimension", raw(entry(shape=[-2])), "shape"),
    ("dimension true", raw(entry(shape=[True, 2])), "shape"),
    ("float dimension", raw(entry(shape=[2.0])), "shape"),
    ("product that overflows", raw(entry(shape=[1 << 40, 1 << 40])), "has 8 bytes"),
    ("nine dimensions", raw(entry(shape=[1] * 8 + [2])), "shape"),
    ("end before begin", raw(entry(data_offsets=[8, 0])), "has -8 bytes"),
    ("three offsets", raw(entry(data_offsets=[0, 4, 8])), "offsets"),
    ("unknown type", raw(entry(dtype="F33")), "unknown type"),
    ("quantised type", raw(entry(dtype="F8_E4M3", shape=[8])), "quantised"),
    ("field missing", raw({"w": {"dtype": "F32", "shape": [2]}}), "needs exactly"),
    ("field too many", raw(entry(extra=1)), "needs exactly"),
    ("control characters in a name", raw({"a\x1b[2J": F32}), "not printable"),
    ("bidi override in a name", raw({"a\u202eb": F32}), "not printable"),
    ("name of 4 kB", raw({"a" * 4096: F32}), "longer than"),
    ("empty name", raw({"": F32}), "is empty"),
    ("empty file", b"", "empty"),
    ("web page", b"<!DOCTYPE html><html>login</html>", "web page"),
    ("Git-LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git-LFS"),
    ("DVC pointer", b"outs:\n- md5: 0\n", "DVC"),
    ("random bytes", bytes(range(200, 256)), "not a safetensors file"),
    ("GGUF", b"GGUF" + b"\0" * 20, "quantised"),
]


@pytest.mark.parametrize(("content", "match"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_files_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelRejected, match=match) as caught:
        read(path)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert caught.value.message.isprintable()
    assert "x.safetensors" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("length", [0x080, 0x280, 0x380, 0x480, 0x580, 0x880])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """A safetensors file begins with its header's length; 640 is the bytes 80 02, as a pickle's first two."""
    state = {"w": torch.arange(3.0)}
    padding = next(n for n in range(length) if struct.unpack("<Q", save(state, {"x": "-" * n})[:8])[0] == length)
    save_file(state, tmp_path / "m.safetensors", {"x": "-" * padding})
    assert torch.equal(read(tmp_path / "m.safetensors").tensors["w"], state["w"])


def test_git_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelRejected) as caught:
        read(tmp_path / "x.safetensors")
    assert "git lfs pull" in caught.value.hint


def test_300_000_empty_tensors_are_refused(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (tmp_path / "x.safetensors").write_bytes(raw({f"t{i}": empty for i in range(300_000)}, b""))
    with pytest.raises(ModelRejected, match="the limit is"):
        read(tmp_path / "x.safetensors")


def test_a_zip_behind_the_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n")
    with pytest.raises(ModelRejected, match="follow the last tensor"):
        read(path)


@pytest.mark.parametrize("change", ["truncate", "rewrite", "replace"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1 << 16)}, path)
    real = source_module.Source.read

    def read_then_change(self: source_module.Source, start: int, length: int) -> bytes:
        part = real(self, start, length)
        if start == 8:  # the header: the data is still to come
            if change == "truncate":
                os.truncate(path, 1 << 12)
            elif change == "rewrite":
                with path.open("r+b") as file:
                    file.seek(-4, os.SEEK_END)
                    file.write(b"\0\0\0\0")
                os.utime(path, ns=(0, 0))
            else:
                save_file({"w": torch.zeros(1 << 16)}, tmp_path / "other")
                os.replace(tmp_path / "other", path)
        return part

    monkeypatch.setattr(source_module.Source, "read", read_then_change)
    with pytest.raises(ModelRejected, match="changed while"):
        read(path)


def test_unaligned_data_is_read_right(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    (tmp_path / "x.safetensors").write_bytes(raw(header, b"\7" + struct.pack("<f", 1.5)))
    assert read(tmp_path / "x.safetensors").tensors["b"].item() == 1.5


SOUND = save({"a": torch.arange(4.0), "b.weight": torch.ones(2, 3)})


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(SOUND) - 1), bits=st.integers(1, 255), cut=st.booleans())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory: Any, position: int, bits: int, cut: bool) -> None:
    damaged = bytearray(SOUND)
    damaged[position] ^= bits
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(bytes(damaged[:position] if cut else damaged))
    refusal = None
    try:
        assert sum(t.numel() for t in read(path).tensors.values()) <= len(SOUND)
    except MemauditError as error:
        refusal = error
    assert refusal is None or (refusal.exit_code == ExitCode.REJECTED and refusal.message.isprintable())
