"""Hints of commands, of the audits and of the story around them, each followed."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from memaudit.cli.erase import Edit
from tests.hints.follow import DRY, INSPECT, Follow
from tests.real_inputs.crashes import DATA, MODEL
from tests.real_inputs.harness import Ran, execute, scan
from tests.real_inputs.pictures import write_code

FLAGGED, REFERENCE = DATA[:2], DATA[2:]
PLAN = ("--dry-run", "-q")
ZERO = ("--profile", "fast", "--images", "none", "-q", "--max-units", "2", "--exit-zero")


def dry(*words: str) -> Callable[[Path], tuple[str, ...]]:
    return lambda folder: ("scan", *MODEL, *words, *PLAN)


def named(*words: str) -> Callable[[Path, Ran], tuple[str, ...]]:
    return lambda folder, ran: words


def code(body: str) -> Callable[[Path], None]:
    return lambda folder: write_code(folder, body)


def mended(folder: Path, ran: Ran) -> None:
    write_code(folder)


def few(folder: Path) -> None:
    """One reference example."""
    with np.load(folder / "reference.npz") as data:
        np.savez(folder / "kept.npz", **data)
        np.savez(folder / "reference.npz", x=data["x"][:1], y=data["y"][:1])


def more(folder: Path, ran: Ran) -> None:
    (folder / "kept.npz").replace(folder / "reference.npz")


def second(folder: Path) -> tuple[str, ...]:
    """Two models of one file name, audited one after the other."""
    for name in ("runA", "runB"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({n: t + 1e-4 for n, t in tensors.items()}, folder / "runB" / "model.safetensors")
    first = execute(folder, ("scan", "runA/model.safetensors", *MODEL[1:], *DATA, *ZERO))
    assert first.code == 0, first.err
    return ("scan", "runB/model.safetensors", *MODEL[1:], *DATA, *ZERO)


def apart(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The words of the hint, added to the command; the first report stays as it is."""
    out = ran.err.split("--out ")[1].split()[0]
    return ("scan", "runB/model.safetensors", *MODEL[1:], *DATA, *ZERO, "--out", out)


ERASE = ("erase", "report/report.json", "--model", MODEL[0], "-o", "e.safetensors", "-q")


def audited(*words: str) -> Callable[[Path], tuple[str, ...]]:
    """An edit after a scan."""

    def wrong(folder: Path) -> tuple[str, ...]:
        ran = execute(folder, ("scan", *MODEL, *DATA, *ZERO, "--out", "report"))
        assert ran.code == 0, ran.err
        return (*ERASE, *words)

    return wrong


def less_than_nothing() -> AbstractContextManager[object]:
    """A budget below any cost: what an edit of this small network costs may be nothing."""
    return mock.patch.object(Edit, "allowed", -1.0)


def allowed(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The budget that the hint names."""
    said = float(ran.err.split("--max-test-drop ")[-1].rstrip(".\n"))
    return (*ERASE, "--all", "--max-test-drop", f"{max(0.0, said):g}")


def convert(folder: Path, *words: str) -> tuple[str, ...]:
    """A whole network, pickled with a class of the user's own file."""
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own" / "own_net.py").write_text("from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n")
    module = types.ModuleType("own_net")
    exec((folder / "own" / "own_net.py").read_text(), module.__dict__)
    with mock.patch.dict(sys.modules, own_net=module):
        torch.save(module.Net(2, 2), folder / "m.pth")
    digest = hashlib.sha256((folder / "m.pth").read_bytes()).hexdigest()
    return ("convert", "--trust-pickle", "--sha256", digest, "m.pth", "out.safetensors", *words)


OVER_TIME = scan(*MODEL, *DATA, "--audit", "rewind")
FOLLOWED = [
    Follow("give this one ({}) a folder of its own: --out {}", second, apart),
    Follow(
        "--flagged FOLDER, manifest or .npz; or flagged = ... in a memaudit.toml (memaudit init)",
        dry(*REFERENCE),
        named(*DRY),
    ),
    Follow("--reference FOLDER, manifest or .npz of clean examples", dry(*FLAGGED), named(*DRY)),
    Follow("For example: --input-size 3,224,224", lambda f: (*INSPECT[:-1], "3,x"), named(*INSPECT)),
    Follow(
        "For example: {} {}",
        lambda f: (*INSPECT, "--mean", "a,b"),
        named(*INSPECT, "--mean", "0.5,0.5,0.5", "--std", "1,1,1"),
    ),
    Follow(
        "If you know who made it, give both: --trust-pickle and --sha256 with the 64 hex digits they publish.",
        lambda f: ("convert", "m.pth", "out.safetensors"),
        named("convert", "--help"),
    ),
    Follow(
        "Name them with --checkpoints DIR, GLOB or FILE; memaudit inspect MODEL shows what is found.",
        lambda f: OVER_TIME,
        named(*INSPECT),
    ),
    Follow("Choose among: {}", lambda f: (*DRY, "--audit", "localise"), named(*DRY, "--audit", "localize")),
    Follow("Use auto, cpu, cuda, cuda:N or mps.", lambda f: (*DRY, "--device", "gpu"), named(*DRY, "--device", "auto")),
    Follow(
        "Give a count such as 3, or a share such as 2%.",
        lambda f: (*DRY, "--max-memorized", "few"),
        named(*DRY, "--max-memorized", "2%"),
    ),
    Follow(
        "Name them with --examples ID,ID, or take all localized ones with --all.",
        audited(),
        named(*ERASE, "--all", "--max-test-drop", "100"),
    ),
    Follow(
        "Name fewer with --examples, suppress the group with --method curvature, or allow more with "
        "--max-test-drop {}.",
        audited("--all", "--max-test-drop", "0"),
        allowed,
        fault=less_than_nothing,
    ),
    Follow(
        "install it beside memaudit, or name the folder of its files with --import-from",
        convert,
        lambda folder, ran: convert(folder, "--import-from", "own"),
    ),
    Follow(
        "Name the folder of your .py files.",
        lambda folder: convert(folder, "--import-from", "nowhere"),
        lambda folder, ran: convert(folder, "--import-from", "own"),
    ),
    Follow("Leave --unit at auto.", lambda f: (*DRY, "--unit", "head"), named(*DRY)),
    Follow("List the layers with: memaudit inspect MODEL", lambda f: (*DRY, "--layers", "nothing*"), named(*INSPECT)),
    Follow("Give clean examples the flagged ones do not contain: a few hundred give useful intervals.", few, more),
    Follow(
        "Likely BatchNorm in training mode, or a forward that mixes the batch.",
        code(
            "class M(Net):\n    def forward(self, x):\n        y = super().forward(x)\n        return y - y.mean(0)\n\n"
            "return M()"
        ),
        mended,
    ),
    Follow(
        "Likely dropout, noise or sampling that eval() does not switch off.",
        code(
            "class M(Net):\n    def forward(self, x):\n        return super().forward(x + 0.1 * torch.rand_like(x))\n\n"
            "return M()"
        ),
        mended,
    ),
    Follow(
        "The adapter must return a network whose .eval() reaches every sub-module.",
        code("class M(Net):\n    def train(self, mode=True):\n        return self\n\nreturn M()"),
        mended,
    ),
    Follow(
        "memaudit follows convolutions, linear layers and attention that run as modules of their own.",
        lambda f: (
            write_code(
                f,
                "class M(Net):\n    def forward(self, x):\n        with torch.no_grad():\n"
                "            x = F.max_pool2d(F.relu(F.conv2d(x, self.one.weight, self.one.bias, padding=1)), 2)\n"
                "            x = F.max_pool2d(F.relu(F.conv2d(x, self.two.weight, self.two.bias, padding=1)), 2)\n"
                "            x = F.relu(F.conv2d(x, self.three.weight, self.three.bias, padding=1))\n"
                "            x = F.relu(F.linear(x.flatten(1), self.fc.weight, self.fc.bias))\n"
                "            return F.linear(x, self.head.weight, self.head.bias)\n\nreturn M()",
            ),
            INSPECT,
        )[1],
        mended,
    ),
    Follow(
        "leave it out of --checkpoints",
        lambda f: (
            np.savez(f / "n.npz", a=1),
            (f / "other.safetensors").write_bytes(_other()),
            scan(*MODEL, *DATA, "--checkpoints", "other.safetensors"),
        )[2],
        named(*scan(*MODEL, *DATA)),
    ),
    Follow("Choose another: memaudit demo DIR", lambda f: ("demo", str(f)), named("demo", "--help")),
]


def _other() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a": torch.ones(2)})
