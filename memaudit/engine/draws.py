"""Random draws that depend on the run's seed, their purpose and the example, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, purpose: str, key: str) -> torch.Generator:
    """A generator that depends on the run's seed, what it is for and the example, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
