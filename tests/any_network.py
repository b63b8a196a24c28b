"""Networks of the kinds that are no image classifier of one label, each trained on the spot with changed labels.

    python -m tests.any_network [NAME...] [--out reports/benchmarks/any-network.md]

Prints and writes what a scan finds of each, as a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit.__main__ import run
from memaudit.report.document import Report
from tests.benchmarks.table import publish

CHANGED = 0.05
WHAT = {
    "cancer": "breast-cancer, 30 columns; two logits",
    "digits": "flat digits, 64 columns; ten logits",
    "signals": "Conv1d on signals (2, 32); a dict with logits",
    "volumes": "Conv3d on volumes (1, 8, 8, 8); a pair of tensors",
    "one_logit": "breast-cancer; one logit",
    "sigmoid": "breast-cancer; one probability, squeezed",
    "several": "flat digits; three labels each",
    "tokens": "token ids and mask (16); two logits",
}
FAST = ("--profile", "fast", "--images", "none", "-q")
FACTORIES = """
import torch
from torch import nn
from torch.nn import functional as F


def mlp(inputs, outputs, width=128):
    return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(),
                         nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


def cancer():
    return mlp(30, 2)


def digits():
    return mlp(64, 10)


def one_logit():
    return mlp(30, 1)


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(30, 1)

    def forward(self, x):
        return torch.sigmoid(self.net(x)).squeeze()


def sigmoid():
    return Squeezed()


def several():
    return mlp(64, 3)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(),
            nn.Linear(128, 64), nn.ReLU())
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        features = self.net(x)
        return {"features": features, "logits": self.head(features)}


def signals():
    return Named()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(),
            nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        out = self.net(x)
        return out, out.detach()


def volumes():
    return Pair()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float()
        return self.mlp((self.table(ids) * weight).sum(1) / weight.sum(1).clamp(min=1))


def tokens():
    return Words()
"""


@dataclass(frozen=True)
class Case:
    """Examples `x` with their labels `y`, the factory's name, and how the network's outputs become a loss."""

    name: str
    x: np.ndarray
    y: np.ndarray
    loss: str = "classes"
    mask: np.ndarray | None = None
    steps: int = 150


def _standard(x: np.ndarray) -> np.ndarray:
    return ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return _standard(data.data), data.target.astype(np.int64)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.data[:1000] / 16).astype(np.float32), data.target[:1000].astype(np.int64)


def _signals(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two channels of a tone of one of three pitches, in noise."""
    y, t = draw.integers(0, 3, 240), np.arange(32)
    phase = draw.uniform(0, 2 * np.pi, (240, 2, 1))
    pitch = np.array([0.1, 0.2, 0.35])[y][:, None, None]
    return (np.sin(2 * np.pi * pitch * t + phase) + draw.normal(0, 0.5, (240, 2, 32))).astype(np.float32), y


def _volumes(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright block in the upper or the lower half, in noise."""
    y, x = draw.integers(0, 2, 160), draw.normal(0, 0.5, (160, 1, 8, 8, 8))
    for i, (depth, row, column) in enumerate(draw.integers(0, 3, (160, 3))):
        depth += 4 * y[i]
        x[i, 0, depth : depth + 2, row : row + 4, column : column + 4] += 1.5
    return x.astype(np.float32), y


def _tokens(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words of which those below 25 speak for one class and the others for the other, padded to 16."""
    y, lengths = draw.integers(0, 2, 400), draw.integers(8, 17, 400)
    own = draw.random((400, 16)) < 0.75
    x = np.where(own == (y[:, None] == 1), draw.integers(25, 50, (400, 16)), draw.integers(1, 25, (400, 16)))
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    return x * mask, y, mask


def cases() -> dict[str, Callable[[], Case]]:
    """By the factory's name, a function that makes the examples."""
    draw = np.random.default_rng(0)

    def tokens() -> Case:
        x, y, mask = _tokens(draw)
        return Case("tokens", x, y, mask=mask)

    def several() -> Case:
        x, y = _digits()
        return Case("several", x, np.stack([y % 2, y > 4, np.isin(y, (0, 6, 8, 9))], 1).astype(np.int64), "several")

    return {
        "cancer": lambda: Case("cancer", *_cancer()),
        "digits": lambda: Case("digits", *_digits()),
        "signals": lambda: Case("signals", *_signals(draw)),
        "volumes": lambda: Case("volumes", *_volumes(draw)),
        "one_logit": lambda: Case("one_logit", *_cancer(), "one"),
        "sigmoid": lambda: Case("sigmoid", *_cancer(), "probability"),
        "several": several,
        "tokens": tokens,
    }


def write(case: Case, folder: Path, most: int = 1000) -> list[str]:
    """Train the case's network with changed labels, save it and its examples, and return how they are scanned.

    Args:
        most: changed examples that are flagged, at most.
    """
    draw = np.random.default_rng(1)
    count = len(case.x)
    trained, clean = np.split(draw.permutation(count), [int(0.6 * count)])
    changed = trained[: max(8, int(CHANGED * len(trained)))]
    labels = case.y.copy()
    asked = np.full_like(labels, -1)
    if case.loss == "several":  # one label of each
        column = draw.integers(0, labels.shape[1], len(changed))
        labels[changed, column] = 1 - labels[changed, column]
        asked[changed, column] = labels[changed, column]
    else:
        classes = int(labels.max()) + 1
        labels[changed] = (labels[changed] + draw.integers(1, classes, len(changed))) % classes
        asked = labels
    network = _fit(case, trained, labels)
    (folder / "net.py").write_text(FACTORIES)
    save_file(network.state_dict(), folder / "model.safetensors")
    for name, rows, y, truth in (("flagged", changed[:most], asked, case.y), ("reference", clean, case.y, None)):
        more = {} if truth is None or case.loss == "several" else {"true_label": truth[rows]}
        masked = {} if case.mask is None else {"mask": case.mask[rows]}
        np.savez(folder / f"{name}.npz", x=case.x[rows], y=y[rows], **more, **masked)
    flags = ["--multi-label"] if case.loss == "several" else []
    named = ["--flagged", "flagged.npz", "--reference", "reference.npz"]
    return ["model.safetensors", "--adapter", f"net.py:{case.name}", *named, *flags]


def _fit(case: Case, rows: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Until every label is fitted, or so many steps are over."""
    space: dict[str, Callable[[], nn.Module]] = {}
    exec(FACTORIES, space)
    torch.manual_seed(0)
    network = space[case.name]()
    given = [torch.from_numpy(a[rows]) for a in (case.x, case.mask) if a is not None]
    target = torch.from_numpy(labels[rows])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(case.steps):
        optimizer.zero_grad()
        loss = _loss(network(*given), target, case.loss)
        loss.backward()
        optimizer.step()
    return network.eval()


def _loss(output: object, target: Tensor, kind: str) -> Tensor:
    logits = output["logits"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
    assert isinstance(logits, Tensor)
    if kind == "classes":
        return F.cross_entropy(logits, target)
    if kind == "probability":
        return F.binary_cross_entropy(logits, target.float())
    return F.binary_cross_entropy_with_logits(logits.reshape(target.shape), target.float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names of networks; all by default")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        "# Networks that are no image classifier of one label",
        "",
        (
            f"Each trained on the spot with {CHANGED:.0%} of its labels changed, which are flagged, and scanned by the "
            "command line with --profile fast; the reference are examples that were never trained on (torch "
            f"{torch.__version__}, one seed)."
        ),
        "",
        "Recall: of the flagged labels that the network fits, the share called memorized.",
        "",
        "| network | reads and returns | flagged | fitted | localized | memorized | recall | reference accuracy |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, make in cases().items():
        if not args.only or name in args.only:
            lines.append(_row(name, make()))
            print(lines[-1], file=sys.stderr, flush=True)
    publish("\n".join(lines) + "\n", args.out)


def _row(name: str, case: Case) -> str:
    """What a scan of the case's network finds, as a row of the table."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()):
        arguments = write(case, Path(place))
        code = run(["scan", *arguments, *FAST, "--out", "report", "--exit-zero"])
        text = Path("report/report.json").read_text("utf-8") if not code else ""
    if code:
        return f"| {name} | {WHAT[name]} | exit {code} |"
    report = Report.model_validate_json(text)
    s, outcomes = report.summary, {o.value: n for o, n in report.summary.outcomes.items()}
    return (
        f"| {name} | {WHAT[name]} | {s.flagged} | {s.fitted} | {outcomes['localized']} | {s.memorized} "
        f"| {s.memorized / max(s.fitted, 1):.2f} | {report.data.reference.accuracy:.3f} |"
    )


if __name__ == "__main__":
    main()
