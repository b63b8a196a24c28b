"""Example-tied dropout on CIFAR-10: changed labels fitted, then dropped, beside the same network without it.

    python -m tests.benchmarks.cifar --data DIR --out STANDARD [--augment]
    python -m tests.benchmarks.cifar --data DIR --out TIED --tied 'layer2*,layer3*' --augment [--mixup 1]
        [--own-epochs 14]
    python -m tests.benchmarks.tied_cifar --data DIR --run 'standard=STANDARD' --run 'shifts and mirrors=TIED' ...
        [--out reports/benchmarks/tied-cifar10.md]

All trainings take the same images, labels and learning rates; the last checkpoint of each is measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from memaudit import example_ids, strip_tied_dropout
from memaudit.network.tied_dropout import layers_of, restore, split_rules
from tests.benchmarks.cifar import accuracy, build, change_labels, load, normalise
from tests.benchmarks.table import options, publish

Row = tuple[str, int | None, float, float | None, float, float]
# Maini et al. 2023, section 5: all 50,000 images, the full-size network.
PUBLISHED: list[Row] = [
    ("published: example-tied dropout, own units on", None, 0.99, None, 0.999, 0.793),
    ("published: the same, memorizing units dropped", None, 0.03, None, 0.908, 0.827),
]


class Data:
    """Training images with their given and true labels, and test images."""

    def __init__(self, folder: Path, images: int, share: float) -> None:
        pixels, labels = load(folder / "cifar10-train.npz", images)
        given, self.changed = change_labels(labels, share, seed=0)
        self.clean = np.setdiff1d(np.arange(images), self.changed)
        self.x, self.given, self.truth = normalise(pixels), torch.from_numpy(given), torch.from_numpy(labels)
        test, test_labels = load(folder / "cifar10-test.npz", 5000)
        self.test, self.test_labels = normalise(test), torch.from_numpy(test_labels)


def last(folder: Path, width: int) -> tuple[nn.Module, int]:
    """The network of the folder's last checkpoint, and the epochs it was trained for."""
    path = sorted(folder.glob("epoch-*.safetensors"))[-1]
    tensors, rules = split_rules(load_file(path))
    model = build("resnet9", width)
    model.load_state_dict(tensors)
    restore(model, rules)
    with safe_open(path, "pt") as file:
        return model.eval(), int(file.metadata()["epoch"])


@torch.no_grad()
def predictions(model: nn.Module, data: Data, rows: np.ndarray, device: str) -> Tensor:
    """Of training images, each with its own memorizing units on."""
    said = []
    for part in torch.split(torch.from_numpy(rows), 500):
        with example_ids(part):
            said.append(model(data.x[part].to(device)).argmax(1).cpu())
    return torch.cat(said)


def measure(name: str, model: nn.Module, data: Data, epochs: int, device: str) -> Row:
    model.to(device)
    changed, clean = (predictions(model, data, rows, device) for rows in (data.changed, data.clean))

    def share(said: Tensor, labels: Tensor) -> float:
        return float((said == labels).float().mean())

    return (
        name,
        epochs,
        share(changed, data.given[data.changed]),
        share(changed, data.truth[data.changed]),
        share(clean, data.truth[data.clean]),
        accuracy(model, data.test, data.test_labels, device),
    )


def table(rows: list[Row], setting: str, device: str) -> str:
    def cell(value: float | None) -> str:
        return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"

    lines = [
        "# Example-tied dropout on CIFAR-10",
        "",
        f"{setting} torch {torch.__version__}, {device}. Written by `python -m tests.benchmarks.tied_cifar`.",
        "",
        "| variant | epochs | changed label | true label of the changed | clean training images | test accuracy |",
        "|---|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(cell, values))} |" for name, *values in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--run", action="append", required=True, help="NAME=DIR, once for each network")
    args = parser.parse_args()
    data, rows = Data(args.data, args.images, args.share), []
    for name, _, folder in (run.partition("=") for run in args.run):
        model, epochs = last(Path(folder), args.width)
        layers = layers_of(model)
        if not layers:
            rows.append(measure(f"no dropout, {name}", model, data, epochs, args.device))
            continue
        first = next(iter(layers.values()))
        tied = f"{name}; {len(layers)} layers, p_gen {int(first.rule[2]) / first.channels:.2g}, p_mem {first.p_mem:.2g}"
        rows.append(measure(f"example-tied dropout, {tied}: own units on", model, data, epochs, args.device))
        dropped = strip_tied_dropout(model, "drop")
        rows.append(measure("the same, memorizing units dropped", dropped, data, epochs, args.device))
    text = table(
        rows + PUBLISHED,
        f"{args.images:,} training images, {args.share:.0%} of their labels changed, 5,000 test images; ResNet-9 of "
        f"width {args.width}, one seed. Test images have no units of their own: with own units "
        "on, theirs are at their expected value.",
        args.device,
    )
    publish(text, args.out)


if __name__ == "__main__":
    main()
