"""Hints about models that are read, and about what lies beside them, each followed."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import re
import shlex
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memaudit.adapters import registry
from memaudit.adapters.base import Adapter
from memaudit.adapters.timm import TimmAdapter
from memaudit.checkpoints import Checkpoint, sandbox
from tests.checkpoints.test_pickle import Wide
from tests.hints.adapters import ARCH
from tests.hints.checkpoints import AGAIN, fetched, plain, torch_file
from tests.hints.follow import INSPECT, Follow, Right, Wrong
from tests.real_inputs.crashes import MODEL
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import pictures, save
from tests.test_testing import Plain

RUN_CHILD = sandbox._run_child  # before the harness puts a quicker one in its place
NOTHING = Ran(Path(), 0, "", "")
CONVERT = ("convert", "--trust-pickle", "--sha256")


def named(*words: str) -> Right:
    return lambda folder, ran: words


def net(*words: str, name: str = "test_resnet", **options: Any) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        save_file(timm.create_model(name, num_classes=3, **options).state_dict(), folder / "t.safetensors")
        return (*ARCH[:2], *words)

    return wrong


# ---- installed adapters -------------------------------------------------------------------------------------------


class Choosy(TimmAdapter):
    """Fails on the user's file, and on nothing else."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: Any) -> Any:
        if checkpoint.path.name == "t.safetensors":
            raise KeyError("mine")
        return super().load(checkpoint, options)

    @classmethod
    def example(cls) -> Adapter:
        return Plain()


def installed(*more: registry.Installed, without: str = "") -> Callable[[], AbstractContextManager[object]]:
    known = [a for a in registry.installed() if a.name != without]
    return lambda: mock.patch.object(registry, "installed", return_value=[*known, *more])


def mine(target: str, package: str = "mine") -> registry.Installed:
    return registry.Installed("mine", target, package, "1")


HERE = f"{__name__}:Choosy"
WITH_MINE = (*ARCH, "--adapter", "mine")


def companion(folder: Path) -> tuple[str, ...]:
    """A folder as transformers saves it."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder / "saved")
    return ("inspect", "saved")


# ---- files --------------------------------------------------------------------------------------------------------


def spoiled(**options: object) -> Callable[[], AbstractContextManager[object]]:
    """The process that opens a pickle ends otherwise."""
    return lambda: mock.patch("memaudit.checkpoints.sandbox._run_child", **options)


@contextmanager
def no_processes() -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with (
        mock.patch("memaudit.checkpoints.sandbox._run_child", RUN_CHILD),
        mock.patch("memaudit.system.isolated.Popen", refuse),
    ):
        yield


def nothing(*_: object, **__: object) -> Any:
    raise RuntimeError("not enough memory")


def wide(folder: Path) -> tuple[str, ...]:
    torch.save({"w": Wide()}, folder / "m.pth")
    return AGAIN


def climbing(folder: Path) -> tuple[str, ...]:
    index = {"weight_map": {"w": "../../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return ("inspect", "model.safetensors.index.json", *AGAIN[2:])


def distributed(folder: Path) -> tuple[str, ...]:
    import torch.distributed.checkpoint as dcp

    dcp.save(load_file(folder / "model.safetensors"), checkpoint_id=str(folder / "parts"), no_dist=True)
    return ("inspect", "parts", *AGAIN[2:])


def gathered(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The command of the hint, word for word."""
    module, verb, source, target = shlex.split(ran.err.split("python -m ")[1].split("\n")[0])
    assert verb == "dcp_to_torch"
    importlib.import_module(module).dcp_to_torch_save(source, target)
    return ("inspect", target, *AGAIN[2:])


def misnamed(folder: Path) -> tuple[str, ...]:
    (folder / "m.pth").write_bytes((folder / "model.safetensors").read_bytes())
    return AGAIN


def rightly(folder: Path, ran: Ran) -> tuple[str, ...]:
    suffix = re.search(r"rename it to end in (\S+);", ran.err)
    assert suffix
    (folder / "m.pth").rename(folder / f"m{suffix[1]}")
    return ("inspect", f"m{suffix[1]}", *AGAIN[2:])


def pipe(folder: Path) -> tuple[str, ...]:
    os.mkfifo(folder / "m.safetensors")
    return ("inspect", "m.safetensors", *AGAIN[2:])


def copied(folder: Path, ran: Ran) -> None:
    (folder / "m.safetensors").unlink()
    (folder / "m.safetensors").write_bytes((folder / "model.safetensors").read_bytes())


@contextmanager
def being_written() -> Iterator[None]:
    """Somebody adds to the file while it is read."""
    from memaudit.checkpoints.source import Source

    read = Source.read

    def slowly(self: Source, *args: int) -> bytes:
        os.utime(self.path, ns=(1, os.stat(self.path).st_mtime_ns + 1))
        return read(self, *args)

    with mock.patch.object(Source, "read", slowly):
        yield


def whole(folder: Path) -> tuple[str, ...]:
    torch.save(nn.Linear(2, 2), folder / "m.pth")
    return (*CONVERT, "0" * 64, "m.pth", "out.safetensors")


def by_digest(folder: Path, ran: Ran) -> tuple[str, ...]:
    return (*CONVERT, hashlib.sha256((folder / "m.pth").read_bytes()).hexdigest(), "m.pth", "out.safetensors")


@contextmanager
def places() -> Iterator[None]:
    """`elsewhere` in the folder is where packages are installed."""
    with mock.patch.object(sys, "path", [*sys.path, str(Path("elsewhere").resolve())]):
        yield
        sys.modules.pop("their_package", None)


def packaged(folder: Path) -> tuple[str, ...]:
    """A pickle of a class of a package that is not there."""
    module = SimpleNamespace(__name__="their_package")
    settings = type("Settings", (), {"__module__": "their_package"})
    module.Settings = settings  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"their_package": module}):  # type: ignore[dict-item]
        torch.save({"state_dict": load_file(folder / "model.safetensors"), "settings": settings()}, folder / "m.pth")
    return by_digest(folder, NOTHING)


def install(folder: Path, ran: Ran) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "their_package.py").write_text("class Settings:\n    pass\n")
    importlib.invalidate_caches()


def packed(folder: Path) -> tuple[str, ...]:
    with tarfile.open(folder / "m.pth", "w") as archive:
        archive.add(folder / "model.safetensors", "inner.safetensors")
    return AGAIN


def unpacked(folder: Path, ran: Ran) -> tuple[str, ...]:
    with tarfile.open(folder / "m.pth") as archive:
        archive.extractall(folder, filter="data")
    return ("inspect", "inner.safetensors", *AGAIN[2:])


# ---- a run of timm ------------------------------------------------------------------------------------------------


def run(settings: str, *words: str) -> Wrong:
    def wrong(folder: Path) -> tuple[str, ...]:
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / "args.yaml").write_text(settings)
        torch.save({"state_dict": load_file(folder / "model.safetensors")}, folder / "run" / "model_best.pth.tar")
        x, truth = pictures()
        for n in range(60, 160):
            save(folder / "data" / "train" / f"c{truth[n]}" / f"{n}.png", x[n])
        return words

    return wrong


def classes(folder: Path, ran: Ran) -> tuple[str, ...]:
    (folder / "names.txt").write_text("c0\nc1\nc2\n")
    return (*OF_A_RUN, "--class-order", "names.txt")


OF_A_RUN = ("scan", "run", *MODEL[1:], "--flagged", "flagged.npz", "--reference", "reference.npz", "--dry-run", "-q")
LOOK = ("inspect", "run", *MODEL[1:])
ALONE = "name the checkpoint file itself"
DOUBT = "do not trust this file"
PLENTY = "use a machine with more memory"
FOLLOWED = [
    Follow(
        "check --arch and --model-kwargs against how it was trained",
        net("--input-size", "32", "--arch", "resnet152"),
        named(*ARCH, "--arch", "test_resnet"),
    ),
    Follow("for example --input-size 3,224,224", net("--input-size", "(3,32)"), named(*ARCH)),
    Follow(
        "pip install {} (plugins/{} in memaudit's repository); or give a factory: --adapter ./my_model.py:build",
        companion,
        fault=installed(without="transformers"),
    ),
    Follow(
        "uninstall one of them",
        net(*WITH_MINE[2:]),
        fault=installed(mine(HERE), mine(HERE, "other")),
        always=installed(mine(f"{TimmAdapter.__module__}:TimmAdapter")),
    ),
    Follow(
        "repair or uninstall that package",
        net(*WITH_MINE[2:]),
        fault=installed(mine("no_such_module:X")),
        always=installed(mine(f"{TimmAdapter.__module__}:TimmAdapter")),
    ),
    Follow(
        "repair or uninstall that package",
        net(*WITH_MINE[2:]),
        fault=installed(mine("json:JSONDecoder")),
        always=installed(mine(f"{TimmAdapter.__module__}:TimmAdapter")),
    ),
    Follow(
        "try it alone: memaudit adapters test {}",
        net(*WITH_MINE[2:]),
        named("adapters", "test", "mine"),
        always=installed(mine(HERE)),
    ),
    # ---- files ----
    Follow(DOUBT, wide, fetched),
    Follow("do not trust this checkpoint", climbing, fetched),
    Follow("do not trust this file; fetch or save it again", torch_file(dict), fault=spoiled(return_value=-11)),
    Follow(
        "free space there, or set TMPDIR to a directory with more",
        torch_file(dict),
        fault=spoiled(return_value=sandbox.DISK_FULL),
    ),
    Follow("free memory or process slots, then run again", torch_file(dict), fault=no_processes),
    Follow(PLENTY, lambda f: INSPECT, fault=lambda: mock.patch("memaudit.checkpoints.tensors.torch.empty", nothing)),
    Follow(
        "save the model's weights again",
        lambda f: (save_file({}, f / "m.safetensors"), ("inspect", "m.safetensors", *AGAIN[2:]))[1],
        fetched,
    ),
    Follow(
        "audit the checkpoint they were made from",
        lambda f: (torch.save(torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8), f / "m.pth"), AGAIN)[1],
        plain,
    ),
    Follow(
        "gather it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} model.pt",
        distributed,
        gathered,
    ),
    Follow("if that is what it should be, rename it to end in {}; otherwise do not trust it", misnamed, rightly),
    Follow("copy the checkpoint to an ordinary file first", pipe, copied),
    Follow("wait until whatever writes it is done, then run again", lambda f: INSPECT, fault=being_written),
    Follow("fetch it again from whoever published that digest", whole, by_digest),
    Follow("Name the file to write accordingly.", lambda f: (*whole(f)[:5], "out.pth"), by_digest),
    Follow(
        "install it beside memaudit, or name the folder of its files with --import-from",
        packaged,
        install,
        always=places,
    ),
    # ---- runs of timm ----
    Follow(ALONE, run("data_dir: [", *LOOK), named("inspect", "run/model_best.pth.tar", *MODEL[1:])),
    Follow(ALONE, run("- none\n", *LOOK), named("inspect", "run/model_best.pth.tar", *MODEL[1:])),
    Follow(
        "give the class names, one per line in label order: --class-order FILE",
        run("data_dir: ../data\nclass_map: nowhere.txt\n", *OF_A_RUN),
        classes,
    ),
    Follow("unpack it, or if torch before 0.2 wrote it: {}", packed, unpacked),
    Follow(
        "audit the checkpoint with plain float tensors that it was made from",
        lambda f: (torch.save({"w": torch.eye(2).to_sparse()}, f / "m.pth"), by_digest(f, NOTHING))[1],
        lambda f, r: (torch.save({"w": torch.eye(2)}, f / "m.pth"), by_digest(f, r))[1],
    ),
]
