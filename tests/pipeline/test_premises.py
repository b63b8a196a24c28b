"""What stops an audit, and what it says: one table of broken networks, one of broken input."""

from __future__ import annotations

import socket
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import memaudit
from memaudit.adapters.base import Adapter
from memaudit.data import ExampleSet
from memaudit.engine.evaluator import Evaluator
from memaudit.errors import (
    BugError,
    DataRejected,
    EnvironmentFault,
    ExitCode,
    Incomplete,
    MemauditError,
    ModelRejected,
    PremiseBroken,
    UsageError,
)
from memaudit.network.hooks import hook_count
from memaudit.network.units import Site
from memaudit.pipeline.premises import check_network
from memaudit.settings import Settings
from tests.conftest import DIGIT, NetworkBlocked, Trained
from tests.quick import short_trainings

# ---- networks on which no figure could stand ----------------------------------------------------------------------


class Around(nn.Module):
    """A trained network with something wrong with it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norm = nn.BatchNorm2d(1)


class Dropping(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.dropout(x, 0.1))  # functional: eval() does not reach it


class Mixing(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0))


class Tracking(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0 * F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True).mean()


class Sequence(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, None]


class Stubborn(Around):
    """Its eval() does not reach the inner network."""

    def train(self, mode: bool = True) -> nn.Module:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Shuffled(Around):
    """Another class order than the reference's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).roll(3, 1)


class Unfollowed(nn.Module):
    """No convolution or linear layer runs as a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Gone(Around):
    """NaN for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * torch.nan


def not_a_number(inner: nn.Module) -> nn.Module:
    inner.two[1].weight[3] = torch.nan
    return inner


def infinite_buffer(inner: nn.Module) -> nn.Module:
    inner.two[1].running_mean[3] = torch.inf
    return inner


BROKEN: dict[str, tuple[Callable[[nn.Module], nn.Module], type[MemauditError], str]] = {
    "train mode": (
        lambda inner: Stubborn(inner.train()),
        PremiseBroken,
        r"^15 modules are in training mode, first inner$",
    ),
    "dropout": (Dropping, PremiseBroken, r"^two passes over the same images differ \(by up to "),
    "batch mixing": (Mixing, PremiseBroken, r"^an image's logits depend on the other images of its batch \(by up to "),
    "NaN weights": (not_a_number, PremiseBroken, r"^the weights are not finite: two\.1\.weight holds NaN or infinity$"),
    "infinite buffer": (infinite_buffer, PremiseBroken, r"^the weights are not finite: two\.1\.running_mean holds"),
    "buffers move": (Tracking, BugError, r"^the forward pass changed the buffer norm\.running_mean"),
    "not logits": (Sequence, ModelRejected, r"^the network returned shape \(1, 1, 10\) .* not logits \(examples"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_premise_that_does_not_hold_stops_the_audit(trained: Trained, case: str) -> None:
    build, kind, message = BROKEN[case]
    module = build(deepcopy(trained.module))
    evaluator = Evaluator(Adapter(module, architecture=case, preprocess=DIGIT))
    with pytest.raises(kind, match=message):
        check_network(evaluator, trained.reference)


def test_the_same_network_without_the_fault_passes(trained: Trained) -> None:
    """What the table breaks is the fault, not the wrapping."""

    class Sound(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    adapter = Adapter(Sound(deepcopy(trained.module)), architecture="Sound", preprocess=DIGIT)
    check_network(Evaluator(adapter), trained.reference)


STOPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], type[MemauditError], str]] = {
    **{case: BROKEN[case] for case in ("dropout", "batch mixing", "NaN weights", "buffers move")},
    "another class order": (
        Shuffled,
        PremiseBroken,
        r"^the class order is wrong \(MEM902\): reference accuracy is 0\.0\d+, and 0\.9\d+ with other labels",
    ),
    "no sites": (Unfollowed, PremiseBroken, "no layer of Unfollowed can be cut"),
    "all NaN": (Gone, Incomplete, r"^the logits of \d+ of \d+ (flagged|reference) examples are NaN or infinite$"),
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_whole_audit_stops_and_leaves_the_module_as_found(trained: Trained, case: str) -> None:
    build, kind, message = STOPPED[case]
    module = build(deepcopy(trained.module)).train()
    bits = {name: value.numpy().tobytes() for name, value in module.state_dict().items() if name[:4] != "norm"}
    with pytest.raises(kind, match=message):
        memaudit.audit(module, trained.flagged, trained.reference, max_units=2)
    assert all(m.training for m in module.modules())
    assert hook_count(module) == 0
    assert {n: v.numpy().tobytes() for n, v in module.state_dict().items() if n[:4] != "norm"} == bits


# ---- input that cannot be audited ---------------------------------------------------------------------------------

Call = Callable[[Trained], Any]


def call(**changes: Any) -> Call:
    def run(trained: Trained) -> Any:
        given = {"model": trained.module, "flagged": trained.flagged, "reference": trained.reference}
        given |= {name: change(trained) if callable(change) else change for name, change in changes.items()}
        return memaudit.audit(given.pop("model"), given.pop("flagged"), given.pop("reference"), **given)

    return run


def relabelled(examples: ExampleSet, label: int) -> tuple[Tensor, Tensor]:
    return examples.pixels, torch.full((len(examples),), label)


CALLS: dict[str, tuple[Call, type[MemauditError], str]] = {
    "nothing flagged": (
        call(flagged=lambda t: t.flagged.subset([])),
        DataRejected,
        "there is no flagged example to audit",
    ),
    "no reference": (
        call(reference=lambda t: t.reference.subset([])),
        DataRejected,
        "0 reference examples are too few",
    ),
    "all of the reference flagged": (
        call(reference=lambda t: t.flagged),
        DataRejected,
        "0 reference examples are too few",
    ),
    "flagged label": (
        call(flagged=lambda t: relabelled(t.flagged, 10)),
        DataRejected,
        r"^50 flagged labels are out of range: array has label 10, the model has 10 classes$",
    ),
    "reference label": (
        call(reference=lambda t: relabelled(t.reference, 12)),
        DataRejected,
        r"^300 reference labels are out of range: array has label 12",
    ),
    "no model": (
        call(model=lambda t: t.module.state_dict()),
        UsageError,
        "must be an nn.Module or an adapter, not OrderedDict",
    ),
    "not examples": (call(flagged=3), DataRejected, "neither a pair"),
    "images without channels": (
        call(flagged=lambda t: (t.flagged.pixels[:, 0, 0], t.flagged.labels)),
        ModelRejected,
        r"the network fails on a batch \(2, 8\)",
    ),
    "unknown option": (call(max_unit=3), UsageError, "max_unit"),
    "profile": (call(profile="slow"), UsageError, "no profile 'slow'"),
    "ablation": (call(ablation="noise"), UsageError, "no ablation 'noise'"),
    "no budget": (call(max_units=0), UsageError, "max_units is 0; it must be at least 1"),
    "no batch": (call(batch_size=0), UsageError, "batch_size is 0; it must be at least 1"),
    "negative batch": (call(batch_size=-4), UsageError, "batch_size is -4"),
    "no example": (call(limit=0), UsageError, "limit is 0; it must be at least 1"),
    "unit": (call(unit="head"), UsageError, r"no unit of kind 'head'; it has: channel \(80\)"),
    "layers": (call(layers="tree.*"), UsageError, r"no layer matches 'tree\.\*'"),
    "device": (call(device="tpu9"), UsageError, "no device is called 'tpu9'"),
    "device that is not here": (call(device="cuda:99"), EnvironmentFault, "this machine has no device 'cuda:99'"),
}


@pytest.mark.parametrize("case", CALLS)
def test_input_that_cannot_be_audited_is_refused_in_one_sentence(trained: Trained, case: str) -> None:
    run, kind, message = CALLS[case]
    with pytest.raises(kind, match=message) as caught:
        run(trained)
    assert "\n" not in str(caught.value)
    assert hook_count(trained.module) == 0


def test_memory_for_less_than_one_example(trained: Trained) -> None:
    class Full(Around):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EnvironmentFault, match=r"out of memory on cpu with a (single example|batch of 2)") as caught:
        memaudit.audit(Full(deepcopy(trained.module)), trained.flagged, trained.reference)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("room", [16, 3, 2])
def test_memory_for_a_few_examples_is_enough(trained: Trained, room: int) -> None:
    """Three is what the search for sites looks at in one pass; with less it has less to go by."""

    class Tight(Around):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(x)

    class Known(Adapter):
        def sites(self, images: Tensor) -> list[Site]:
            return list(sites)

    sites = [Site(f"inner.{s.layer}", s.kind, s.width, edits=s.edits) for s in trained.space.sites]
    adapter = Known(Tight(deepcopy(trained.module)), architecture="Tight", preprocess=DIGIT)
    sets = trained.flagged.subset(range(2)), trained.reference.subset(range(60))
    options = Settings(max_units=2, batch_size=64, profile="standard" if room == 16 else "fast")
    with short_trainings():
        report = memaudit.audit(adapter, *sets, settings=options)
        expected = memaudit.audit(trained.adapter, *sets, settings=options)
    assert [[u.index for u in f.units] for f in report.findings] == [
        [u.index for u in f.units] for f in expected.findings
    ]
    assert report.volatile["batch_size"] <= room


# ---- the tree -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UsageError, 2),
        (ModelRejected, 3),
        (DataRejected, 3),
        (PremiseBroken, 3),
        (Incomplete, 4),
        (EnvironmentFault, 5),
        (BugError, 70),
    ],
)
def test_every_error_knows_its_exit_code_and_carries_what_to_do(kind: type[MemauditError], code: int) -> None:
    error = kind("what", hint="do this", details=iter(["a", "b"]))
    assert (error.exit_code, str(error), error.hint, error.details) == (code, "what", "do this", ("a", "b"))


def test_no_error_looks_like_a_verdict() -> None:
    def below(kind: type[MemauditError]) -> list[type[MemauditError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in below(sub))]

    assert len(below(MemauditError)) >= 8
    assert not {k.exit_code for k in below(MemauditError)} & {ExitCode.OK, ExitCode.POLICY}


# ---- tests stay on this machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("how", ["connect", "connect_ex", "sendto"])
def test_tests_cannot_reach_the_network(family: socket.AddressFamily, how: str) -> None:
    address = ("192.0.2.1", 9) if family == socket.AF_INET else ("2001:db8::1", 9)
    kind = socket.SOCK_DGRAM if how == "sendto" else socket.SOCK_STREAM
    with socket.socket(family, kind) as connection, pytest.raises(NetworkBlocked, match=r"tried to reach '(192|2001)"):
        getattr(connection, how)(*([b"x", address] if how == "sendto" else [address]))


def test_tests_can_reach_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
