"""What lies beside a model: its own past, or other runs'."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.real_inputs.harness import Case, Expected, Ran, scan
from tests.real_inputs.pictures import CODE, Net, pictures, write_code

State = dict[str, Tensor]
EPOCHS = 6
ROWS = 120


@cache
def past(seed: int, rate: float = 3e-3, start: int = 0) -> list[State]:
    """The state after each epoch of a training by plain torch; `start` draws the first weights, `seed` the order."""
    x, truth = pictures()
    images = torch.tensor(x[:ROWS]).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor(truth[:ROWS])
    labels[:6] = (labels[:6] + 1) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        network: nn.Module = Net()
        torch.manual_seed(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=rate)
        states = []
        for _ in range(EPOCHS):
            for _ in range(4):
                for rows in torch.randperm(ROWS).split(20):
                    optimiser.zero_grad()
                    F.cross_entropy(network(images[rows]), labels[rows]).backward()
                    optimiser.step()
            states.append(copy.deepcopy(network.state_dict()))
    return states


def write(folder: Path, files: Mapping[str, tuple[State, int | None]]) -> None:
    """Checkpoints with the epoch they store, the code and the examples."""
    write_code(folder)
    for name, (state, epoch) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state if epoch is None else {"epoch": epoch, "state_dict": state}, folder / name)
    x, truth = pictures()
    labels = truth.copy()
    labels[:6] = (labels[:6] + 1) % 3
    images = x.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.savez(folder / "flagged.npz", x=images[:6], y=labels[:6])
    np.savez(folder / "reference.npz", x=images[200:300], y=truth[200:300])


def taken(*names: str, note: str = "") -> Expected:
    """`inspect` takes these files for the model's past, and says why not others."""

    def holds(ran: Ran) -> None:
        found = json.loads(ran.out)
        files = tuple(point["file"] for point in found["series"])
        assert files == names, f"took {files}"
        assert not note or any(note in said for said in found["series_notes"]), found["series_notes"]

    return Expected(0, holds=holds)


MODEL = ("--adapter", CODE, "--input-size", "3,16,16")
DATA = ("--flagged", "flagged.npz", "--reference", "reference.npz")


def named(
    name: str, model: str, files: Callable[[], Mapping[str, tuple[State, int | None]]], expected: Expected
) -> Case:
    """Told by names and what the files store."""
    return Case("series", name, lambda f: write(f, files()), ("inspect", model, *MODEL, "-f", "json"), expected)


def led(
    name: str, model: str, files: Callable[[], Mapping[str, tuple[State, int | None]]], expected: Expected, *words: str
) -> Case:
    """Told by the weights as well, when a scan reads them."""
    return Case("series", name, lambda f: write(f, files()), scan(model, *MODEL, *DATA, *words), expected)


def counted(number: int, note: str = "") -> Expected:
    """The report follows so many checkpoints, the model included; 0: none but the model was taken."""

    def holds(ran: Ran) -> None:
        assert len(ran.report.series) == number, [p.file for p in ran.report.series]
        assert note in ran.warned("MEM106"), ran.warned("MEM106")

    return Expected(0, holds=holds)


def run(pattern: str, seed: int = 0, epochs: Any = range(EPOCHS), **more: Any) -> dict[str, tuple[State, int | None]]:
    return {pattern.format(e): (past(seed, **more)[e], e) for e in epochs}


def best(pattern: str, seeds: range, **more: Any) -> dict[str, tuple[State, int | None]]:
    """One file for each training, each saved at an epoch of its own."""
    return {pattern.format(s): (past(s, **more)[s + 2], s + 2) for s in seeds}


EPOCH_FILES = tuple(f"epoch_{e}.pth" for e in range(EPOCHS))
GRADIENTS = ("--audit", "localize,gradients")
CASES = [
    named("epochs of one run", "epoch_5.pth", lambda: run("epoch_{}.pth"), taken(*EPOCH_FILES)),
    named("numbers alone, epochs inside", "5.pth", lambda: run("{}.pth"), taken(*(f"{e}.pth" for e in range(EPOCHS)))),
    named(
        "named from 1, stored from 0",
        "net_6.pth",
        lambda: {f"net_{e + 1}.pth": v for e, v in enumerate(run("{}").values())},
        taken(*(f"net_{e + 1}.pth" for e in range(EPOCHS))),
    ),
    named("the best of each fold", "fold3_best.pth", lambda: best("fold{}_best.pth", range(4)), taken()),
    named("the best of each seed", "model_seed2.pth", lambda: best("model_seed{}.pth", range(4)), taken()),
    named("versions", "v3.pth", lambda: best("v{}.pth", range(4)), taken()),
    named(
        "folds whose number is the epoch by chance",
        "fold3.pth",
        lambda: {f"fold{k}.pth": (past(k)[k], k) for k in range(4)},
        taken(),
    ),
    named(
        "two rates, epoch by epoch",
        "lr0.01_epoch2.pth",
        lambda: run("lr0.1_epoch{}.pth", 0, range(3)) | run("lr0.01_epoch{}.pth", 1, range(3)),
        taken("lr0.01_epoch0.pth", "lr0.01_epoch1.pth", "lr0.01_epoch2.pth"),
    ),
    named(
        "a lone epoch among another run's",
        "b_epoch2.pth",
        lambda: run("a_epoch{}.pth", 0, range(4)) | run("b_epoch{}.pth", 1, [2]),
        taken(),
    ),
    named(
        "metrics in the names",
        "epoch=2-val_acc=0.91.ckpt",
        lambda: {f"epoch={e}-val_acc=0.{70 + 7 * e + 7 * (e > 0)}.ckpt": (past(0)[e], e) for e in range(3)},
        taken("epoch=0-val_acc=0.70.ckpt", "epoch=1-val_acc=0.84.ckpt", "epoch=2-val_acc=0.91.ckpt"),
    ),
    named(
        "top-1 in the names",
        "epoch2_acc1=91.2.pth",
        lambda: {f"epoch{e}_acc1={a}.pth": (past(0)[e], e) for e, a in enumerate((70.5, 84.1, 91.2))},
        taken("epoch0_acc1=70.5.pth", "epoch1_acc1=84.1.pth", "epoch2_acc1=91.2.pth"),
    ),
    named(
        "Lightning's second run in one folder",
        "epoch=2-step=30-v1.ckpt",
        lambda: run("epoch={}-step=30.ckpt", 0, range(3)) | run("epoch={}-step=30-v1.ckpt", 1, range(3)),
        taken(*(f"epoch={e}-step=30-v1.ckpt" for e in range(3))),
    ),
    named(
        "a moment twice",
        "epoch_3.pth",
        lambda: run("epoch_{}.pth", 0, range(4)) | {"epoch_03.pth": (past(1)[3], 3)},
        taken(note="several runs"),
    ),
    named(
        "dates and one run",
        "2024-05-01_epoch2.pth",
        lambda: run("2024-05-01_epoch{}.pth", 0, range(3)) | run("2024-05-02_epoch{}.pth", 1, range(3)),
        taken(*(f"2024-05-01_epoch{e}.pth" for e in range(3))),
    ),
    led(
        "a run beside its last state",
        "final.pth",
        lambda: run("epoch_{}.pth", 0, range(5)) | {"final.pth": (past(0)[5], None)},
        counted(6),
        *GRADIENTS,
    ),
    led(
        "another run's epochs from the same start",
        "final.pth",
        lambda: run("epoch_{}.pth", 1, range(4)) | {"final.pth": (past(0)[5], None)},
        counted(0, "do not lead to it"),
    ),
    led(
        "another run's epochs from another start",
        "final.pth",
        lambda: run("epoch_{}.pth", 1, range(4), start=3) | {"final.pth": (past(0)[5], None)},
        counted(0, "do not lead to it"),
    ),
    led(
        "what was trained from the model later",
        "final.pth",
        lambda: run("epoch_{}.pth", 0, range(2, 6)) | {"final.pth": (past(0)[1], None)},
        counted(0, "do not lead to it"),
    ),
    led(
        "one stranger among the epochs",
        "final.pth",
        lambda: run("epoch_{}.pth", 0, range(5)) | {"epoch_2.pth": (past(1)[2], 2), "final.pth": (past(0)[5], None)},
        counted(0, "do not lead to it"),
    ),
    led(
        "a run whose files count backwards",
        "final.pth",
        lambda: (
            {f"epoch_{n}.pth": (past(0)[e], n) for n, e in enumerate((5, 3, 2))} | {"final.pth": (past(0)[0], None)}
        ),
        counted(0, "fits the examples better than the model"),
    ),
    led(
        "two states that are one another's past and not the model's",
        "final.pth",
        lambda: run("epoch_{}.pth", 0, range(3, 5), start=3) | {"final.pth": (past(0)[5], None)},
        counted(0, "do not lead to it"),
    ),
]
