"""Where a network runs, how many examples at a time, and in which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memaudit.errors import EnvironmentFault, UsageError
from memaudit.text import clean

# Elements of one CPU input batch under `--batch-size auto`: past this, larger batches were no faster on two cores.
CPU_BATCH_ELEMENTS = 2**19


MAX_BATCH = 256


def resolve_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` takes cuda, then mps, then cpu.

    Raises:
        EnvironmentFault: it is named and not there.
        UsageError: no such kind of device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device is called {clean(name)!r}", hint="Use auto, cpu, cuda, cuda:N or mps.") from None
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise EnvironmentFault(f"this machine has no device {clean(name)!r}", hint="Use --device cpu, or auto.")
    return device


def automatic_batch_size(images: Tensor, device: torch.device) -> int:
    """A batch that fills the machine without filling its memory; `_run` halves it where this guesses too high.

    Args:
        images: one batch of inputs `(N, C, H, W)`; only the shape counts.
    """
    each = max(1, images[0].numel())
    if device.type == "cpu":
        return max(4, min(MAX_BATCH, CPU_BATCH_ELEMENTS // each))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 * 2**30
    # 1,000 times its input is what one example of a ResNet-50 keeps for the backward pass, with room to spare.
    return max(4, min(4 * MAX_BATCH, free // (each * 4 * 1000)))


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Float32 means float32 and equal inputs give equal outputs while the body runs; global switches are put back.

    TF32 and cuDNN's autotuner change numbers from run to run, as does the order in which a GPU's fused attention adds
    up gradients; PyTorch's fused transformer path skips module hooks.
    """
    cudnn, matmul, mha = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mha
    saved = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32, mha.get_fastpath_enabled())
    fused = [] if torch.cuda.is_available() else [SDPBackend.FLASH_ATTENTION]  # the CPU's is exact
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = False, False, True, False
        mha.set_fastpath_enabled(False)
        with sdpa_kernel([SDPBackend.MATH, *fused]):
            yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = saved[:4]
        mha.set_fastpath_enabled(saved[4])
