"""What a user's own module may do between building and logits: it is audited, or blamed in its own words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.real_inputs.harness import Case, Expected, Ran, execute, scan
from tests.real_inputs.pictures import CODE, fit, pictures, write_code, write_model

MODEL = ("model.safetensors", "--adapter", CODE, "--input-size", "3,16,16")
DATA = ("--flagged", "flagged.npz", "--reference", "reference.npz")
WRAP = """class Wrap(Net):
    def {}(self, *args, **kwargs):
        raise ValueError("mine")

return Wrap()"""
LAZY = """net = Net()
net.one, net.fc = nn.LazyConv2d(8, 3, padding=1), nn.LazyLinear(64)
return net"""
TIRED = """class Tired(Net):
    calls = 0
    def forward(self, x):
        Tired.calls += 1
        if Tired.calls > 30:
            raise RuntimeError("tired")
        return super().forward(x)

return Tired()"""
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def trained(folder: Path, body: str = "return Net()") -> None:
    x, truth = pictures()
    labels = truth.copy()
    labels[:6] = (labels[:6] + 1) % 3
    images = torch.tensor(x).permute(0, 3, 1, 2).float() / 255
    write_model(folder, fit(images[:120], labels[:120].tolist()))
    write_code(folder, body)
    np.savez(folder / "flagged.npz", x=images[:6].numpy(), y=labels[:6])
    np.savez(folder / "reference.npz", x=images[200:300].numpy(), y=truth[200:300])


def pointers(folder: Path) -> None:
    trained(folder)
    for n in range(3):
        (folder / "flagged" / str(n)).mkdir(parents=True)
        (folder / "flagged" / str(n) / "x.png").write_text(POINTER)


def as_plain(ran: Ran) -> None:
    """The report is that of the same network without lazy layers."""
    lazy = [f.model_dump(mode="json") for f in ran.report.findings]
    write_code(ran.folder)
    again = execute(ran.folder, scan(*MODEL, *DATA, "--fresh"))
    assert [f.model_dump(mode="json") for f in again.report.findings] == lazy


def case(name: str, body: str, expected: Expected, build: Callable[[Path, str], None] = trained) -> Case:
    return Case("crash", name, lambda folder: build(folder, body), scan(*MODEL, *DATA), expected)


CASES = [
    case("lazy layers", LAZY, Expected(0, holds=as_plain)),
    case("TorchScript, scripted", "return torch.jit.script(Net())", Expected(3, "return the Python module")),
    case(
        "TorchScript inside", "net = Net()\nnet.fc = torch.jit.script(net.fc)\nreturn net", Expected(3, "TorchScript")
    ),
    *(
        case(f"{method}() raises", WRAP.format(method), Expected(3, "ValueError: mine"))
        for method in ("forward", "eval", "to", "state_dict", "load_state_dict", "float", "train", "requires_grad_")
    ),
    case("it raises in the middle of the audit", TIRED, Expected(3, "RuntimeError: tired")),
    case("the factory raises", "raise KeyError('width')", Expected(3, "network.py line")),
    case("the factory ends the program", "raise SystemExit(0)", Expected(3, "SystemExit")),
    Case(
        "crash",
        "dry run, all flagged files are Git-LFS pointers",
        pointers,
        scan(*MODEL, "--flagged", "flagged", "--reference", "reference.npz", "--dry-run"),
        Expected(4, "none of the flagged examples could be read"),
    ),
    Case(
        "crash",
        "dry run of a network that mixes its batch",
        lambda folder: trained(
            folder,
            "class Mixed(Net):\n    def forward(self, x):\n        y = super().forward(x)\n"
            "        return y - y.mean(0)\n\nreturn Mixed()",
        ),
        scan(*MODEL, *DATA, "--dry-run"),
        Expected(3, "depend on the other images of its batch"),
    ),
]
