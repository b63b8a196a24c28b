"""Pickles that are not weights: nothing in them runs, no bomb goes off here, and a refusal says what it was."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from memaudit.checkpoints import fingerprint, read
from memaudit.checkpoints.archive import read_pickle
from memaudit.checkpoints.opcodes import OPCODES, scan
from memaudit.checkpoints.source import opened
from memaudit.errors import ExitCode, ModelRejected


class Payload:
    """Runs a shell command when a pickle of it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


class Bytes:
    """A bytearray of 6 GB from a few bytes of pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (6 << 30,)


class Wide:
    """A tensor of 10^12 elements on a storage of one."""

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.ones(1).storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (10**6, 10**6), (0, 0), False, OrderedDict())


def rewrite(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], **options: Any) -> None:
    """Write the archive at `path` again, each member changed or left out."""
    with zipfile.ZipFile(path) as archive:
        members = [(i.filename, archive.read(i)) for i in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            if (kept := change(name, data)) is not None:
                archive.writestr(*kept)


def with_pickle(path: Path, text: bytes) -> None:
    torch.save({"w": torch.ones(2)}, path)
    rewrite(path, lambda n, d: (n, text if n.endswith("data.pkl") else d))


def code(path: Path, canary: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Payload(canary)}, path)


def deflated(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, path)
    rewrite(path, lambda n, d: (n, d), compression=zipfile.ZIP_DEFLATED)


def twice(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        name = archive.namelist()[0]
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")


def before(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    path.write_bytes(b"PK\x03\x04 polyglot" + path.read_bytes())


def after(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    with path.open("ab") as file:
        file.write(b"more")


def flipped(path: Path, canary: Path) -> None:
    torch.save({"w": torch.full((64,), 7.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 7.0) * 8)] ^= 1
    path.write_bytes(bytes(content))


def truncated(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def script(path: Path, canary: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def instantiator(path: Path, canary: Path) -> None:
    hyper = {"_instantiator": "os.system", "class_path": f"touch {canary}"}
    torch.save(
        {"pytorch-lightning_version": "2.5", "state_dict": {"w": torch.ones(2)}, "hyper_parameters": hyper}, path
    )


def renamed(path: Path, canary: Path) -> None:
    save_file({"w": torch.ones(2)}, path)


# Refused before anything executes: name, extension, how it is made, the message.
REFUSED: list[tuple[str, str, Callable[[Path, Path], object], str]] = [
    ("os.system", ".pt", code, "would call"),
    ("os.system as raw pickle", ".pt", lambda p, c: p.write_bytes(pickle.dumps(Payload(c))), "bare pickle"),
    ("os.system, protocol 0", ".bin", lambda p, c: p.write_bytes(pickle.dumps(Payload(c), 0)), "no checkpoint format"),
    (
        "os.system before torch 1.6",
        ".pth",
        lambda p, c: torch.save({"w": Payload(c)}, p, _use_new_zipfile_serialization=False),
        "would call",
    ),
    ("os.system as safetensors", ".safetensors", code, "extension"),
    ("safetensors as pickle", ".pt", renamed, "extension"),
    ("TorchScript", ".pt", script, "TorchScript"),
    ("bytearray of 6 GB", ".pt", lambda p, c: torch.save({"w": Bytes()}, p), "bytearray"),
    ("quantised", ".pt", lambda p, c: torch.save(torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8), p), "qu"),
    ("a set of classes", ".pt", lambda p, c: with_pickle(p, b"cbuiltins\neval\n."), "would call 'builtins.eval'"),
    ("two pickles in one", ".pt", lambda p, c: with_pickle(p, b"\x80\x02N.\x80\x02N."), "bytes follow"),
    ("pickle cut", ".pt", lambda p, c: with_pickle(p, b"\x80\x02}q\x00X\xff"), "damaged"),
    ("deflated member", ".pt", deflated, "compressed"),
    ("member twice", ".pt", twice, "there twice"),
    ("bytes before", ".pt", before, "not a sound torch archive"),
    ("bytes after", ".pt", after, "not a sound torch archive"),
    ("flipped weight byte", ".pt", flipped, "checksum"),
    ("truncated", ".pt", truncated, "cut short"),
    ("zip of something else", ".pt", lambda p, c: zipfile.ZipFile(p, "w").writestr("a/b.txt", "x"), "torch archive"),
    ("empty", ".ckpt", lambda p, c: p.write_bytes(b""), "empty"),
    ("web page", ".bin", lambda p, c: p.write_bytes(b"\n<html><body>"), "web page"),
    ("HDF5", ".pt", lambda p, c: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5"),
    ("unknown extension", ".dat", lambda p, c: torch.save({"w": torch.ones(2)}, p), "extension"),
]


def stacked(module: str, name: str) -> bytes:
    """A pickle of protocol 4 that looks up `name`, which may have dots, in `module`."""
    texts = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
    return b"\x80\x04" + texts + b"\x93."


# What looks like a network's class and is none: no hint may lead there.
DISGUISED: list[tuple[str, bytes]] = [
    ("what a module of torch.nn imported", stacked("torch.nn.parallel.distributed", "os.system")),
    ("a function of timm that opens files", b"ctimm.models._helpers\nload_state_dict\n."),
    ("a function of torch.nn", b"ctorch.nn.parallel.parallel_apply\nparallel_apply\n."),
    ("a module whose name begins alike", b"ctorch.nnx\nModule\n."),
    ("attributes by name", b"cbuiltins\ngetattr\n."),
    ("a class and eval", b"(ctorch.nn.modules.linear\nLinear\ncbuiltins\neval\nt."),
    ("importlib", b"cimportlib\nimport_module\n."),
    ("a process", b"csubprocess\nPopen\n."),
    ("another pickle inside", b"ctorch.storage\n_load_from_bytes\n."),
    ("of the script", b"c__main__\nNet\n."),
]
REFUSED += [
    (name, ".pt", lambda p, c, text=text: with_pickle(p, text), "refused|instruction") for name, text in DISGUISED
]
# Refused as well, and their users may open them on their own word: they call nothing but a network's classes.
TRUSTABLE: list[tuple[str, str, Callable[[Path, Path], object], str]] = [
    ("whole module", ".pth", lambda p, c: torch.save(nn.Linear(2, 2), p), "would call 'torch.nn"),
    (
        "whole network of timm",
        ".pth",
        lambda p, c: torch.save(timm.create_model("test_vit", num_classes=2), p),
        "would call 'timm.models",
    ),
    (
        "an optimizer saved whole",
        ".pth",
        lambda p, c: torch.save({"model": nn.Linear(2, 2).state_dict(), "opt": torch.optim.SGD([torch.ones(1)])}, p),
        "would call 'torch.optim",
    ),
    ("protocol 4", ".pt", lambda p, c: torch.save({"w": torch.ones(2)}, p, pickle_protocol=4), "instruction"),
]
# These need the child to find out.
BOMBS: list[tuple[str, str, Callable[[Path, Path], object], str]] = [
    ("stride 0", ".pt", lambda p, c: torch.save({"w": Wide()}, p), "more than the file stores"),
    ("instantiator", ".ckpt", instantiator, "_instantiator"),
]


@pytest.fixture(autouse=True)
def canary(tmp_path: Path) -> Any:
    """A file that no test may bring into being."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def refuse(path: Path, match: str, trustable: bool = False) -> None:
    started = _processor_seconds()
    with pytest.raises(ModelRejected, match=match) as caught:
        read(path)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert path.name in caught.value.message
    text = f"{caught.value.message} {caught.value.hint}"
    assert text.isprintable()
    assert "weights_only" not in text
    # Only what calls nothing but a network's classes may be opened on its user's word.
    assert ("--trust-pickle --sha256 " + fingerprint(path) in text) == trustable
    assert caught.value.hint
    assert _processor_seconds() - started < 15


def _processor_seconds() -> float:
    """Of this process and its children: unlike the wall clock, it does not depend on what else the machine does."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:torch.quantize:UserWarning")
@pytest.mark.parametrize(("suffix", "write", "match"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_before_anything_executes(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, write: Any, match: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("memaudit.checkpoints.sandbox._run_child", None)
    path = tmp_path / f"x{suffix}"
    write(path, canary)
    refuse(path, match)


@pytest.mark.parametrize(("suffix", "write", "match"), [t[1:] for t in TRUSTABLE], ids=[t[0] for t in TRUSTABLE])
def test_refused_and_openable_on_its_users_word(
    tmp_path: Path, canary: Path, suffix: str, write: Any, match: str
) -> None:
    path = tmp_path / f"x{suffix}"
    write(path, canary)
    refuse(path, match, trustable=True)


@pytest.mark.filterwarnings("ignore:TypedStorage:UserWarning")
@pytest.mark.parametrize(("suffix", "write", "match"), [b[1:] for b in BOMBS], ids=[b[0] for b in BOMBS])
def test_refused_by_the_child(tmp_path: Path, canary: Path, suffix: str, write: Any, match: str) -> None:
    path = tmp_path / f"x{suffix}"
    write(path, canary)
    refuse(path, match)


@pytest.mark.processes
def test_nested_tuples_that_never_finish_are_stopped(tmp_path: Path) -> None:
    # ((((), ()), ((), ())), ...): 60 levels of sharing; hashing it as a key takes 2^60 steps.
    text = b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"NsX\x01\x00\x00\x00wNs."
    path = tmp_path / "x.pt"
    with_pickle(path, text)
    refuse(path, "far more time or memory")


def test_a_storage_larger_than_the_file_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x03N", b"\x8a\x05\0\0\0\0\x10N", 1))  # 3 elements become 2^36
    refuse(path, "far more memory|refuses it")


def test_a_table_that_holds_itself_is_refused(tmp_path: Path) -> None:
    table: dict[str, Any] = {"w": torch.ones(2)}
    table["state_dict"] = table
    torch.save(table, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "no tensor")


@pytest.mark.processes
def test_the_environment_cannot_turn_the_check_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the scan gone, the child loads with `weights_only=True` said out loud."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("memaudit.checkpoints.sandbox.scan", lambda *_: 1)
    code(tmp_path / "x.pt", tmp_path / "canary")
    refuse(tmp_path / "x.pt", "weights-only loader refuses")


def test_bookkeeping_beside_the_weights_is_no_obstacle(tmp_path: Path) -> None:
    import numpy as np

    extra = {
        "best": np.float64(0.5),
        "counts": np.ones(3),
        "where": Path("/x/y"),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save({"state_dict": {"w": torch.ones(2)}, **extra}, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt").tensors["w"].tolist() == [1, 1]


@pytest.mark.processes
def test_a_cwd_full_of_traps_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "memaudit", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert read("x.pt").tensors["w"].tolist() == [1, 1]


def test_checksums_left_out_are_no_damage(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(tmp_path / "x.pt").tensors["w"].tolist() == [1, 1]


def test_every_byte_of_a_small_archive_is_covered(tmp_path: Path) -> None:
    """Any single damaged byte is refused before the child, or changes nothing that counts (padding, dates)."""
    torch.save({"w": torch.ones(4)}, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    from memaudit.checkpoints.archive import read_pickle
    from memaudit.checkpoints.source import opened

    with opened(tmp_path / "good.pt") as source:
        expected = read_pickle(source)
    for position in range(0, len(good), 3):
        path = tmp_path / "bad.pt"
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        with opened(path) as source:
            try:
                assert read_pickle(source) == expected
            except ModelRejected as error:
                assert error.message.isprintable()  # noqa: PT017 - either outcome is right
    assert io.BytesIO(good).read(4) == b"PK\x03\x04"


def test_bytes_between_members_are_refused(tmp_path: Path) -> None:
    """A gap can hold what another reader takes for a member."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2)}, path)
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    gap = b"hidden" * 5
    end = bytearray(content[start:])
    moved = start + len(gap)
    # The three places that say where the directory starts: the record, its zip64 twin, and the locator of that.
    record, locator = end.index(b"PK\x06\x06"), end.index(b"PK\x06\x07")
    struct.pack_into("<I", end, end.index(b"PK\x05\x06") + 16, moved)
    struct.pack_into("<Q", end, record + 48, moved)
    struct.pack_into("<Q", end, locator + 8, moved + record)
    path.write_bytes(content[:start] + gap + bytes(end))
    assert zipfile.ZipFile(path).testzip() is None  # Python's own reader does not mind
    refuse(path, "belong to no member")


def test_a_directory_of_millions_is_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + b"\0" * 26)
        file.truncate(80 << 20)
        file.seek(0, os.SEEK_END)
        start, size = file.tell() - (64 << 20), 64 << 20
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFE, 0xFFFE, size, start, 0))
    refuse(path, "not a sound torch archive")


# ---- any directory, any instructions --------------------------------------------------------------------------------


def packed(pickled: bytes = b"") -> bytes:
    """A torch archive, with `pickled` in place of its own instructions."""
    content, new = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(name, pickled if pickled and name.endswith("data.pkl") else old.read(name))
    return new.getvalue()


SOUND = packed()
DIRECTORY = SOUND.index(b"PK\x01\x02")


def checked(content: bytes, folder: Path) -> bytes | None:
    """The pickle that the checks before the child let through; None for a printable refusal."""
    path = folder / "any.pt"
    path.write_bytes(content)
    try:
        with opened(path) as source:
            pickled = read_pickle(source)
            scan(pickled, source.name)
    except ModelRejected as refusal:
        said = refusal.message
    else:
        return pickled
    assert said.isprintable()
    return None


@example(changes=[(DIRECTORY + 8, b"\x20")], comment=b"")  # patched data, and strong encryption
@example(changes=[(DIRECTORY + 8, b"\x40")], comment=b"")
@given(
    changes=st.lists(
        st.tuples(st.integers(DIRECTORY, len(SOUND) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    comment=st.binary(max_size=20),
)
def test_any_directory_is_refused_or_read_as_zipfile_reads_it(
    tmp_path_factory: Any, changes: list[tuple[int, bytes]], comment: bytes
) -> None:
    damaged = bytearray(SOUND)
    for position, value in changes:
        damaged[position : position + len(value)] = value
    found = checked(bytes(damaged) + comment, tmp_path_factory.getbasetemp())
    if found is not None:
        with zipfile.ZipFile(io.BytesIO(bytes(damaged) + comment)) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            assert archive.read(name) == found


ARGUMENTS = st.binary(max_size=6) | st.sampled_from([
    *(b"os\nsystem\n", b"collections\nOrderedDict\n", b"torch._utils\n_rebuild_tensor_v2\n", b"\x8c\x02os", b"12\n"),
    *(b"\x05\0\0\0w\xff\xff\xff\xff", b"\xff\xff\xff\x7f"),
])  # fmt: skip
INSTRUCTION = st.tuples(st.sampled_from([o.code.encode("latin-1") for o in pickletools.opcodes]), ARGUMENTS)


@given(st.lists(INSTRUCTION, max_size=12))
def test_any_instructions_are_refused_or_are_all_on_the_list(
    tmp_path_factory: Any, body: list[tuple[bytes, bytes]]
) -> None:
    pickled = b"\x80\x02" + b"".join(code + argument for code, argument in body) + b"."
    if checked(packed(pickled), tmp_path_factory.getbasetemp()) is not None:
        assert {opcode.name for opcode, _, _ in pickletools.genops(pickled)} <= OPCODES
