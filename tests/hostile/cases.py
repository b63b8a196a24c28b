"""The cases. Tables that the readers' own tests use are given to the command as well; the rest is built here."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memaudit.errors import UsageError
from tests.checkpoints import test_pickle as pickles
from tests.checkpoints import test_safetensors as headers
from tests.checkpoints import test_weights as weights
from tests.cli_support import MODEL
from tests.data import test_images as images
from tests.data import test_manifest as manifests
from tests.hostile.harness import CANARY, Case, scan

CODE = MODEL[1:]  # the adapter and its options, without the file


def on_model(name: str) -> tuple[str, ...]:
    return scan(model=(name, *CODE))


def on_flagged(name: str) -> tuple[str, ...]:
    return scan(data=("--flagged", name, "--reference", "reference.npz"))


def on_reference(name: str) -> tuple[str, ...]:
    return scan(data=("--flagged", "flagged.npz", "--reference", name))


def writes(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda work: (work / name).write_bytes(content)


def state(change: Callable[[dict[str, Tensor]], Any], name: str = "bad.pt") -> Callable[[Path], object]:
    """The trained network's own weights, changed."""

    def build(work: Path) -> None:
        content = change(load_file(work / "digits.safetensors"))
        if name.endswith(".safetensors"):
            save_file(content, work / name)
        else:
            torch.save(content, work / name)

    return build


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def checkpoints() -> Iterator[Case]:
    for name, content, _ in headers.BROKEN:
        yield Case("safetensors", name, writes("bad.safetensors", content), on_model("bad.safetensors"))
    for name, suffix, make, _ in (*pickles.REFUSED, *pickles.BOMBS):
        file = f"bad{suffix}"
        yield Case("pickle", name, lambda w, m=make, f=file: m(w / f, w / CANARY), on_model(file))
    for name, suffix, make, _ in pickles.TRUSTABLE:  # nothing but a network's classes
        file, says = f"bad{suffix}", "memaudit convert --trust-pickle --sha256"
        yield Case("own pickle", name, lambda w, m=make, f=file: m(w / f, w / CANARY), on_model(file), says=says)
    for name, content, chosen, error, _ in weights.REFUSED:
        if chosen is None:
            code = 2 if error is UsageError else 3
            yield Case("weights", name, lambda w, c=content: torch.save(c, w / "bad.pt"), on_model("bad.pt"), (code,))
    changed: list[tuple[str, Callable[[dict[str, Tensor]], Any], int]] = [
        ("a weight is missing", lambda s: {k: v for k, v in s.items() if k != "one.0.weight"}, 3),
        ("a weight too many", lambda s: {**s, "extra.weight": torch.ones(2)}, 3),
        ("int8 into float", lambda s: {k: v.to(torch.int8) for k, v in s.items()}, 3),
        ("complex into float", lambda s: {k: v.to(torch.complex64) for k, v in s.items()}, 3),
        ("NaN weight", lambda s: {k: v * torch.nan if v.is_floating_point() else v for k, v in s.items()}, 3),
        ("Inf weight", lambda s: {k: v / 0 if v.is_floating_point() else v for k, v in s.items()}, 3),
        ("EMA differs", lambda s: {"state_dict": s, "state_dict_ema": {k: v + 1 for k, v in s.items()}}, 2),
    ]
    for name, change, code in changed:
        yield Case("weights", name, state(change), on_model("bad.pt"), (code,))
    honest: list[tuple[str, Callable[[dict[str, Tensor]], Any]]] = [
        ("module. prefix", lambda s: prefixed("module.", s)),
        ("_orig_mod.module. prefix", lambda s: prefixed("_orig_mod.module.", s)),
        ("training checkpoint", lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}}),
        ("EMA equal", lambda s: {"state_dict": s, "state_dict_ema": dict(s)}),
        ("Lightning", lambda s: {"pytorch-lightning_version": "2", "state_dict": prefixed("net.", s)}),
        ("double", lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()}),
        ("half", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
        ("bfloat16", lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()}),
    ]  # fmt: skip
    for name, change in honest:
        yield Case("honest", name, state(change), on_model("bad.pt"), (1,))
    linked = on_model("b.safetensors")
    yield Case("honest", "hard link", lambda w: (w / "b.safetensors").hardlink_to(w / MODEL[0]), linked, (1,))
    yield Case("honest", "symbolic link", lambda w: (w / "b.safetensors").symlink_to(MODEL[0]), linked, (1,))
    yield Case("weights", "FIFO", lambda w: os.mkfifo(w / "bad.safetensors"), on_model("bad.safetensors"))
    yield Case("weights", "folder without weights", lambda w: (w / "bad").mkdir(), on_model("bad"), (2, 3))
    yield Case("weights", "missing", lambda w: None, on_model("gone.safetensors"))
    yield Case("weights", "device", lambda w: (w / "z.safetensors").symlink_to("/dev/zero"), on_model("z.safetensors"))
    evil = '{"weight_map": {"w": "../../x.safetensors"}, "metadata": {}}'
    index = "model.safetensors.index.json"
    yield Case("safetensors", "shard path that climbs", writes(index, evil.encode()), on_model(index))


def data() -> Iterator[Case]:
    for name, row, _ in manifests.ROWS:
        if name in ("too large", "ten", "typo", "case", "folder", "itself", "missing", "below a file", "climbs inside"):
            continue  # they speak of that test's own classes
        text = "path,label\n" + row + "\n"
        yield Case("manifest", f"row: {name}", writes("bad.csv", text.encode()), on_flagged("bad.csv"))
    for name, content, _ in manifests.FILES:
        if isinstance(content, bytes):
            yield Case("manifest", f"table: {name}", writes("bad.csv", content), on_flagged("bad.csv"))
    for name, line, _ in manifests.JSON:
        content = line.encode("utf-8", "replace") + b"\n"
        yield Case("manifest", f"json: {name}", writes("bad.jsonl", content), on_flagged("bad.jsonl"))
    for name, content, _ in images.UNREADABLE:
        yield Case("image", name, one_image(name, content), on_flagged("bad.csv"), (4,))
    for name, content, _ in images.TOO_LARGE:
        yield Case("image", name, one_image(name, content), on_flagged("bad.csv"))
    yield from arrays()


def one_image(name: str, content: bytes) -> Callable[[Path], object]:
    """A manifest of two images, one of them bad."""

    def build(work: Path) -> None:
        good = next((work / "flagged").rglob("*.png"))
        (work / f"bad-{name}").write_bytes(content)
        rows = [f"bad-{name},1", f"{good.relative_to(work)},{good.parent.name}"]
        (work / "bad.csv").write_text("path,label\n" + "\n".join(rows) + "\n")

    return build


def arrays() -> Iterator[Case]:
    def changed(change: Callable[[Any, Any], dict[str, Any]]) -> Callable[[Path], object]:
        def build(work: Path) -> None:
            with np.load(work / "reference.npz") as given:
                np.savez(work / "bad.npz", **change(given["x"].copy(), given["y"].copy()))

        return build

    def nan(x: Any, y: Any) -> dict[str, Any]:
        x[3, 0, 2, 2] = np.nan
        return {"x": x, "y": y}

    table: list[tuple[str, Callable[[Any, Any], dict[str, Any]]]] = [
        ("zero rows", lambda x, y: {"x": x[:0], "y": y[:0]}),
        ("NaN pixel", nan),
        ("values to 255 as float", lambda x, y: {"x": x * 255, "y": y}),
        ("NHWC float", lambda x, y: {"x": x.transpose(0, 2, 3, 1), "y": y}),
        ("another shape", lambda x, y: {"x": x[:, :, :5], "y": y}),
        ("label -1", lambda x, y: {"x": x, "y": y - y.max() - 1}),
        ("label 10", lambda x, y: {"x": x, "y": y + 10}),
        ("float labels", lambda x, y: {"x": x, "y": y + 0.5}),
        ("fewer labels", lambda x, y: {"x": x, "y": y[:-1]}),
        ("objects", lambda x, y: {"x": np.array([Evil()] * 3, dtype=object), "y": y[:3]}),
        ("no y", lambda x, y: {"x": x}),
        ("complex", lambda x, y: {"x": x * 1j, "y": y}),
        ("shifted labels", lambda x, y: {"x": x, "y": (y + 1) % 10}),
    ]
    for name, change in table:
        yield Case("array", name, changed(change), on_reference("bad.npz"))

    def member(work: Path) -> None:
        with zipfile.ZipFile(work / "bad.npz", "w") as archive:
            archive.writestr("../evil.npy", b"x")

    def bomb(work: Path) -> None:
        with zipfile.ZipFile(work / "bad.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", b"\x93NUMPY" + bytes(200 << 20))

    yield Case("array", "../ member", member, on_reference("bad.npz"))
    yield Case("array", "bomb", bomb, on_reference("bad.npz"))
    yield Case("array", "no zip", writes("bad.npz", b"PK\x03\x04" + bytes(50)), on_reference("bad.npz"))


class Evil:
    """Runs when an object array is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


STRINGS = {
    "img[/].png": "rich markup", ":skull:.png": "rich emoji", "<img src=x onerror=alert(1)>.png": "markup",
    "a\n::error::b.png": "workflow command", "a\x1b[2Jb.png": "escape", "a\u202egnp.png": "bidi override",
    "\u009b31m.png": "C1 control", "a'\"`;$(touch canary).png": "shell", "}}{{7*7}}.png": "template",
}  # fmt: skip


def strings() -> Iterator[Case]:
    for name, what in STRINGS.items():

        def build(work: Path, name: str = name) -> None:
            flagged = work / "flagged"
            victim = next(flagged.rglob("*.png"))
            victim.rename(victim.with_name(name.replace("/", "")))

        words = scan(data=("--flagged", "flagged", "--reference", "reference.npz"))
        yield Case("string", what, build, words, (1,))
    surrogate = b"path,label,note\nflagged/\xff.png,1,x\n"
    yield Case("string", "lone surrogate", writes("bad.csv", surrogate), on_flagged("bad.csv"))


EVIL = f"open({CANARY!r}, 'w').write('x')\n"


def code() -> Iterator[Case]:
    for name in ("timm", "torch", "sitecustomize", "rich", "yaml", "json"):
        yield Case("code", f"evil {name}.py in the folder", writes(f"{name}.py", EVIL.encode()), scan(), (1,))
    config = b'[tool.memaudit]\nadapter = "evil.py:build"\n'

    def beside(work: Path) -> None:
        (work / "evil.py").write_text(EVIL)
        (work / "reference" / "pyproject.toml").write_bytes(config)
        (work / "reference" / "memaudit.toml").write_bytes(config[16:])

    data_folder = scan(data=("--flagged", "flagged.npz", "--reference", "reference"))
    yield Case("code", "config in the audited folder", beside, data_folder, (1, 3))
    yield Case("code", "unknown config key", writes("memaudit.toml", b"addapter = 'x'\n"), scan(), (2,))
    yield Case("code", "config key twice", writes("memaudit.toml", b"seed = 1\nseed = 2\n"), scan(), (2,))
    bad = scan(model=(MODEL[0], "--adapter", "bad.py:build"))
    yield Case("code", "adapter that raises", writes("bad.py", b"1 / 0\n"), bad)
    yield Case("code", "adapter that exits", writes("bad.py", b"raise SystemExit(0)\n"), bad)


def outputs() -> Iterator[Case]:
    def link(work: Path) -> None:
        (work / "x.json").symlink_to("flagged.csv")

    yield Case("output", "symbolic link", link, scan("-o", "x.json"), (2,))
    yield Case("output", "folder", lambda w: (w / "x.json").mkdir(), scan("-o", "x.json"), (2,))
    yield Case("output", "read-only", read_only, scan("-o", "x.json"), (2,))
    yield Case("output", "/dev/full", lambda w: None, scan("-o", "/dev/full.json"), (1, 2, 5))
    yield Case("crash", "another run's journal", foreign_journal, scan(), (2,), "--fresh")
    yield Case("crash", "garbage for a journal", writes("report/journal.jsonl", b"\x00garbage"), scan(), (1,))
    yield Case("crash", "journal is a link", lambda w: (w / "report/journal.jsonl").symlink_to("../x"), scan(), (2,))
    yield Case("crash", "time limit reached at once", lambda w: None, scan("--time-limit", "0.001"), (4,))


def read_only(work: Path) -> None:
    (work / "x.json").write_text("{}")
    (work / "x.json").chmod(0o444)


def foreign_journal(work: Path) -> None:
    from memaudit.engine.journal import Journal

    journal = Journal(work / "report", {"seed": "9"})
    journal.add("batch size", 4, None)
    journal.close()


def every() -> list[Case]:
    """All cases, in the order of the table."""
    return [*checkpoints(), *data(), *strings(), *code(), *outputs()]


def clear(place: Path) -> None:
    """Remove a case's folder, read-only files in it too."""
    shutil.rmtree(place, ignore_errors=True)
