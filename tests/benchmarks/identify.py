"""How well architectures are told from names and shapes: every timm architecture, with its own classes and with 7.

    python -m tests.benchmarks.identify [PATTERN]     (all of timm: about 15 minutes on one core)

Prints per number of classes how many architectures were identified alone, among several, wrongly or not at all, then
each group that cannot be told apart. Two networks of equal tensors count as one where they compute the same; how many
would be alone if equal printed modules (`repr`) were enough stands beside it, for some settings that change what is
computed (window sizes, pooling, numbers of heads) are not printed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import timm
import torch

from memaudit.adapters.building import build, default_config
from memaudit.adapters.identify import Candidate, identify
from memaudit.adapters.index import load_index
from memaudit.errors import ModelRejected

CLASSES = (None, 7)  # None: the architecture's own


def outcome(architecture: str, classes: int | None) -> tuple[str, list[Candidate]]:
    """How identification ends for a fresh network of `architecture`: alone, among, wrong, missed or headless."""
    kwargs = {} if classes is None else {"num_classes": classes}
    tensors = build(architecture, kwargs, device="meta").state_dict()
    try:
        candidates = identify(tensors)
    except ModelRejected:
        return "headless", []
    hit = any(architecture in c.same for c in candidates)
    if not candidates:
        return "missed", []
    if not hit:
        return "wrong", candidates
    return ("alone" if len(candidates) == 1 else "among"), candidates


def main() -> None:
    torch.set_num_threads(1)
    architectures = timm.list_models(sys.argv[1] if len(sys.argv) > 1 else "")
    encoders = {e.architecture for e in load_index() if not e.classifier}  # never have a classifier
    groups: set[tuple[tuple[str, ...], ...]] = set()
    for classes in CLASSES:
        started = time.perf_counter()
        counts: Counter[str] = Counter()
        alike = 0
        slowest = (0.0, "")
        for architecture in architectures:
            before = time.perf_counter()
            result, candidates = outcome(architecture, classes)
            slowest = max(slowest, (time.perf_counter() - before, architecture))
            bare = classes is None and default_config(architecture).get("num_classes") == 0
            expected = bare or architecture in encoders
            counts["no classifier, refused" if result == "headless" and expected else result] += 1
            if result in ("wrong", "missed") or (result == "headless" and not expected):
                print(f"{result}: {architecture} -> {[c.architecture for c in candidates]}")
            alike += len({c.printed for c in candidates}) == 1
            if result == "among":
                groups.add(tuple(sorted(tuple(sorted(c.same)) for c in candidates)))
        known = len(architectures) - counts["no classifier, refused"]
        print(
            f"classes {classes or 'default'}: {dict(counts)}; of {known}: alone {counts['alone'] / max(known, 1):.1%}"
        )
        print(f"  {alike} ({alike / max(known, 1):.1%}) where equal printed modules count as one; ", end="")
        seconds = time.perf_counter() - started
        print(f"{seconds / len(architectures):.2f} s each, slowest {slowest[0]:.1f} s ({slowest[1]})", flush=True)
    for group in sorted(groups):
        print(" | ".join("=".join(names) for names in group))


if __name__ == "__main__":
    main()
