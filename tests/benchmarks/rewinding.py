"""The rewinding grid against the naive one, in one run: 9 groups x 9 checkpoints x 2,000 images on a ResNet-9.

    python -m tests.benchmarks.rewinding [--images 2000] [--width 32] [--batch 64]

The two are timed in turns, batch by batch, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import deepcopy

import torch

from memaudit.adapters.base import Adapter
from memaudit.audits.rewind import rewind
from memaudit.data import Preprocess, from_tensors
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.network.layer_groups import layer_groups, tensors_of
from memaudit.network.replay import watch
from memaudit.network.scoped import holding
from memaudit.network.states import State
from tests.networks import ResNet9


def measure(images: int, width: int, batch: int, checkpoints: int = 9) -> dict[str, float | int | bool]:
    """Seconds of both grids, their ratio, and whether every cell is the same."""
    torch.manual_seed(0)
    module = ResNet9(width=width).eval().requires_grad_(False)
    shape = Preprocess((3, 32, 32))
    labels = torch.randint(0, 10, (images,))
    data = from_tensors(torch.rand(images, 3, 32, 32), labels, preprocess=shape, num_classes=10)
    evaluator = Evaluator(Adapter(module, architecture="ResNet9", preprocess=shape), batch)
    groups = layer_groups(module, watch(module, module, torch.rand(2, 3, 32, 32)).first_use)
    states = []
    for number in range(checkpoints):
        earlier = deepcopy(module)
        for p in earlier.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p))
        states.append(State(f"epoch {number}", {n: t.detach().clone() for n, t in tensors_of(earlier).items()}))
    fast = slow = 0.0
    same = True
    for first in range(0, len(data), 4 * batch):
        panel = Panel(data, range(first, min(first + 4 * batch, len(data))))
        start = time.perf_counter()
        grid = rewind(evaluator, groups, states, [panel]).right[0]
        fast += time.perf_counter() - start
        start = time.perf_counter()
        for g, group in enumerate(groups):
            for c, state in enumerate(states):
                with holding(module, state.part(group.names)):
                    logits = evaluator.logits(data, panel.rows)
                same &= torch.equal(logits.argmax(1) == data.labels[list(panel.rows)], grid[g, c])
        slow += time.perf_counter() - start
    return {"groups": len(groups), "checkpoints": checkpoints, "images": images, "fast_s": round(fast, 2),
            "naive_s": round(slow, 2), "ratio": round(fast / slow, 3), "same": same}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    print(json.dumps(measure(args.images, args.width, args.batch)))


if __name__ == "__main__":
    main()
