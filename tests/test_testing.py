"""The conformance kit: every check fails on an adapter that breaks its promise, and none on one that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memaudit import testing
from memaudit.adapters.base import Adapter, ModelOptions
from memaudit.adapters.timm import TimmAdapter
from memaudit.checkpoints import Checkpoint
from memaudit.data import Preprocess
from memaudit.errors import AdapterFault, ExitCode, MemauditError, UsageError
from memaudit.network.units import Site
from memaudit.testing import CHECKS, check_adapter, check_built, check_installed
from tests.networks import Oddly, TokenMajor

SIZE = (3, 16, 16)


def oddly() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Oddly()


class Plain(Adapter):
    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__(module or oddly(), architecture="odd", preprocess=Preprocess(SIZE))


def breaking(**overrides: Any) -> Callable[[], Adapter]:
    """An adapter of which some attributes are others."""
    return lambda: type("Broken", (Plain,), overrides)()


def changed(change: Callable[[nn.Module], object]) -> Callable[[], Adapter]:
    """An adapter whose module is changed after it was made ready."""

    def make() -> Adapter:
        adapter = Plain()
        change(adapter.module)
        return adapter

    return make


def forward(f: Callable[[Tensor], Any]) -> Callable[[], Adapter]:
    """An adapter that does something to the logits: no subclass may, so this one does it to itself."""

    def make() -> Adapter:
        adapter = Plain()
        adapter.forward = lambda images: f(Adapter.forward(adapter, images))  # type: ignore[method-assign]
        return adapter

    return make


class Counting(Oddly):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Bare(nn.Module):
    """Nothing in it is a module, so nothing can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) @ self.w


def sites(change: Callable[[Site], Site]) -> Callable[[], Adapter]:
    """An adapter that describes each of its sites a little differently from what it is."""
    return breaking(sites=lambda self, images: [change(s) for s in Adapter.sites(self, images)])


def weight_only(site: Site) -> Site:
    return replace(site, edits=site.edits[:1])


def token_major(change: Callable[[Site], Site]) -> Callable[[], Adapter]:
    def make() -> Adapter:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapter = Plain(TokenMajor())
        found = adapter.sites(torch.rand(3, *SIZE))
        adapter.sites = lambda images: [change(s) for s in found]  # type: ignore[method-assign]
        return adapter

    return make


def leave_hook(self: Adapter, images: Tensor) -> list[Site]:
    self.module.register_forward_hook(lambda *_: None)
    return Adapter.sites(self, images)


def nudge(self: Adapter, images: Tensor) -> list[Site]:
    with torch.no_grad():
        next(self.module.parameters()).mul_(1.0001)
    return Adapter.sites(self, images)


def explode(logits: Tensor) -> Tensor:
    raise KeyError("x\x1b")


# what is broken, the adapter, what the fault says
BROKEN: list[tuple[str, Callable[[], Any], str]] = [
    ("no adapter", lambda: nn.Linear(1, 1), "not an Adapter"),
    ("all in training mode", changed(lambda m: m.train()), "sub-modules are in training mode"),
    ("one part in training mode", changed(lambda m: m.beth.train()), "1 sub-modules .* first beth"),
    ("parameters in training", changed(lambda m: m.requires_grad_()), "parameters require gradients, first aleph"),
    ("raises", forward(explode), r"while checking that images .*: KeyError: 'x\\+x1b'"),
    ("other input size", lambda: _sized((1, 16, 16)), "while checking that images of preprocess.input_size"),
    ("three axes", forward(lambda x: x[None]), r"returned \(1, 3, 5\) for images"),
    ("a pair", forward(lambda x: (x, x)), "returned tuple"),
    ("one row for all", forward(lambda x: x.mean(0, keepdim=True)), r"returned \(1, 5\)"),
    ("other number of classes", breaking(num_classes=7), "5 logits, num_classes is 7"),
    ("not finite", forward(lambda x: x / 0), "not all finite"),
    ("integers", forward(lambda x: x.long()), "torch.int64"),
    ("changes a buffer", lambda: Plain(Counting()), "changed 1 buffers, first calls"),
    ("noise", forward(lambda x: x + torch.rand_like(x)), "two passes .* differ"),
    ("dropout left on", forward(lambda x: F.dropout(x, 0.5, training=True)), "two passes .* differ"),
    ("mixes the batch", forward(lambda x: x - x.mean(0)), "depend on the other images"),
    ("assumes a batch of three", forward(lambda x: x[: max(1, len(x) - 1)]), r"returned \(2, 5\)"),
    ("detached", forward(lambda x: x.detach()), "no gradient"),
    ("without gradients", forward(torch.Tensor.detach), "no gradient"),
    ("nothing to cut", lambda: Plain(Bare()), "found no layer"),
    ("a weight edit that leaves the bias", sites(weight_only), "zeroing its weights differ"),
    ("the wrong axis", sites(lambda s: replace(s, axis=0)), "while checking that in every layer"),
    ("the wrong example", token_major(lambda s: replace(s, batch_minor=not s.batch_minor)), "changes others"),
    ("leaves hooks", breaking(sites=leave_hook), "left the network changed: number of hooks"),
    ("changes a weight", breaking(sites=nudge), "left the network changed: aleph.weight"),
]


def _sized(size: tuple[int, int, int]) -> Adapter:
    adapter = Plain()
    adapter.preprocess = Preprocess(size)
    return adapter


@pytest.mark.parametrize(("make", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_promise_is_found_and_explained(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(AdapterFault, match=says) as caught:
        check_adapter(make())
    assert caught.value.hint
    assert caught.value.message.isprintable()
    assert caught.value.exit_code == ExitCode.REJECTED


@pytest.mark.parametrize("module", [Oddly, TokenMajor])
def test_networks_that_keep_their_promises_pass_every_check(module: type[nn.Module]) -> None:
    passed = check_adapter(Plain(module()))
    assert passed[:-1] == list(CHECKS)
    assert "left as it was found" in passed[-1]


class Wordless(Plain):
    pass


class Crashing(Plain):
    @classmethod
    def example(cls) -> Adapter:
        return cls.load(Checkpoint(Path("x"), "torch", {}), ModelOptions())

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: ModelOptions) -> Adapter:
        raise ZeroDivisionError("x\x1b")


def test_the_timm_adapters_own_example_passes() -> None:
    assert len(check_installed("timm")) == len(CHECKS) + 1
    assert TimmAdapter.example().architecture == "test_resnet"


@pytest.mark.parametrize(
    ("adapter", "error", "says"),
    [
        (Wordless, UsageError, "the adapter 'x' has no example"),
        (Crashing, AdapterFault, r"Crashing.example\(\) raised ZeroDivisionError: x\\x1b"),
    ],
)
def test_an_example_that_is_missing_or_raises_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, adapter: type[Adapter], error: type[Exception], says: str
) -> None:
    monkeypatch.setattr(testing, "load_class", lambda name: adapter)
    with pytest.raises(error, match=says):
        check_installed("x")


def test_the_module_that_a_users_file_builds_is_tested(tmp_path: Path) -> None:
    file = tmp_path / "my_net.py"
    start = "from torch import nn\n\n\ndef build():\n    return nn.Sequential("
    file.write_text(start + "nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n")
    assert len(check_built(f"{file}:build", (3, 8, 8))) == len(CHECKS) + 1
    file.write_text(start + "nn.Flatten(0), nn.Linear(192, 3))\n")
    with pytest.raises(MemauditError):
        check_built(f"{file}:build", (3, 8, 8))
    with pytest.raises(UsageError, match="no factory 'built'"):
        check_built(f"{file}:built", (3, 8, 8))


def test_an_adapter_nobody_installed_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no adapter 'tim' is installed; closest: 'timm'"):
        check_installed("tim")
