"""CIFAR-10 with changed labels: the data, and a command that trains the network the benchmarks audit.

    python -m tests.benchmarks.cifar --data DIR --out DIR [--network resnet9|vit|vit-stem] [--images 10000]
        [--epochs 16] [--pattern] [--half] [--augment 16] [--mixup 1]
        [--tied 'layer2*,layer3*' --p-gen 0.3 --p-mem 0.1 [--own-epochs 14]]

With `--own-epochs` generalizing units learn first, alone, and memorizing ones after them (`own_units`).
`DIR` holds `cifar10-train.npz` and `cifar10-test.npz` (JPEG bytes in `jpeg`, `offsets`, `label`).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit import add_tied_dropout, example_ids
from memaudit.network.tied_dropout.modes import set_mode
from tests.benchmarks.own_units import teach
from tests.networks import ResNet9, StemViT

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def load(path: Path, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, 32, 32, 3)` uint8 and labels `(N,)` of the first `count` rows."""
    with np.load(path) as archive:
        jpeg, offsets, labels = archive["jpeg"], archive["offsets"], archive["label"]
    rows = range(count or len(labels))
    images = [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in rows]
    return np.stack(images), labels[: len(images)].astype(np.int64)


def change_labels(
    labels: np.ndarray, share: float, seed: int, classes: int = 10, pattern: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`labels` with `share` of them moved to a random other class, by pattern to the next; and the rows that were."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(labels), round(share * len(labels)), replace=False))
    changed = labels.copy()
    changed[rows] = (changed[rows] + (1 if pattern else rng.integers(1, classes, len(rows)))) % classes
    return changed, rows


def normalise(images: np.ndarray) -> Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


NETWORKS = ("resnet9", "vit", "vit-stem")


def build(network: str, width: int = 32) -> nn.Module:
    if network == "resnet9":
        return ResNet9(width=width)
    if network == "vit-stem":
        return StemViT()
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, embed_dim=128, depth=6, num_heads=4
    )


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, device: str) -> float:
    model.eval()
    right = sum(
        (model(x[i : i + 500].to(device)).argmax(1).cpu() == y[i : i + 500]).sum().item() for i in range(0, len(x), 500)
    )
    return right / len(x)


def augment(x: Tensor, pad: int = 4) -> Tensor:
    """Each image `(N, C, H, W)` shifted by up to `pad` pixels either way, half of them mirrored."""
    count, _, height, width = x.shape
    padded = F.pad(x, (pad, pad, pad, pad))
    down, right = torch.randint(0, 2 * pad + 1, (2, count))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns) + right[:, None]
    rows = torch.arange(height) + down[:, None]
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mixed(x: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Images mixed with others of the batch, which ones, and how much is their own (mixup, Zhang et al. 2018)."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share, order = max(share, 1 - share), torch.randperm(len(x))
    return share * x + (1 - share) * x[order], order, share


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    out: Path | None,
    *,
    device: str = "cpu",
    lr: float = 0.4,
    batch: int = 128,
    adam: bool = False,
    augmented: int = 0,
    mixup: float = 0.0,
    half: bool = False,
    seed: int = 0,
) -> None:
    """Train, one safetensors file an epoch in `out`; without augmentation changed labels are fitted sooner.

    Args:
        out: None: no files, and nothing is printed.
        augmented: so many epochs, the first ones, see shifted and mirrored images.
        half: products in bfloat16, which takes half the time where the processor has them.
        mixup: parameter of the Beta distribution the shares are drawn from; 0: images are not mixed.
    """
    torch.manual_seed(seed)
    model.to(device, memory_format=torch.channels_last)
    if adam:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * steps, pct_start=0.25)
    start = time.time()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))
        total = 0.0
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            images = augment(x[rows]) if epoch < augmented else x[rows]
            labels, order_in, share = y[rows].to(device), None, 1.0
            if mixup:
                images, order_in, share = mixed(images, mixup)
            inputs = images.to(device, memory_format=torch.channels_last)
            optimizer.zero_grad()
            with example_ids(rows), torch.autocast(device, torch.bfloat16, enabled=half):
                logits = model(inputs)
                loss = F.cross_entropy(logits, labels)
                if order_in is not None:
                    loss = share * loss + (1 - share) * F.cross_entropy(logits, labels[order_in])
                loss.backward()
            if adam:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if out is not None:
            save(model, out, epoch + 1)
            print(f"epoch {epoch + 1} loss {total / steps:.4f} {time.time() - start:.0f} s", flush=True)


def save(model: nn.Module, out: Path, epoch: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.cpu().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state, out / f"epoch-{epoch:03d}.safetensors", metadata={"epoch": str(epoch)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, default="resnet9")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--pattern", action="store_true", help="changed labels are those of the next class")
    parser.add_argument("--half", action="store_true", help="products in bfloat16")
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--augment", type=int, default=0, help="first epochs that see shifted and mirrored images")
    parser.add_argument("--mixup", type=float, default=0.0, help="mix images, by shares of this Beta distribution")
    parser.add_argument("--tied", help="layers that get example-tied dropout")
    parser.add_argument("--p-gen", type=float, default=0.3)
    parser.add_argument("--p-mem", type=float, default=0.1)
    parser.add_argument("--own-epochs", type=int, default=0, help="then memorizing units alone, for so many epochs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    images, labels = load(args.data / "cifar10-train.npz", args.images)
    changed, rows = change_labels(labels, args.share, seed=0, pattern=args.pattern)
    test_images, test_labels = load(args.data / "cifar10-test.npz", 5000)
    torch.manual_seed(0)
    model = build(args.network, args.width)
    if args.tied:
        add_tied_dropout(model, args.tied, args.p_gen, args.p_mem, input_size=(3, 32, 32))
    x, y, truth = normalise(images), torch.from_numpy(changed), torch.from_numpy(labels)
    with set_mode(model, "drop" if args.own_epochs else None):
        train(
            model,
            x,
            y,
            args.epochs,
            args.out,
            device=args.device,
            lr=args.lr,
            batch=args.batch,
            adam=args.network != "resnet9",
            augmented=args.augment,
            mixup=args.mixup,
            half=args.half,
        )
    if args.own_epochs:
        teach(model, build(args.network, args.width), x, y, args.own_epochs, args.batch, args.device)
        save(model, args.out, args.epochs + args.own_epochs)
    clean = np.setdiff1d(np.arange(len(x)), rows)
    test_x, test_y = normalise(test_images), torch.from_numpy(test_labels)
    facts = {
        "train": accuracy(model, x, y, args.device),
        "changed_fitted": accuracy(model, x[rows], y[rows], args.device),
        "changed_true": accuracy(model, x[rows], truth[rows], args.device),
        "clean_train": accuracy(model, x[clean], truth[clean], args.device),
        "test": accuracy(model, test_x, test_y, args.device),
    }
    print(json.dumps(facts))
    (args.out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
