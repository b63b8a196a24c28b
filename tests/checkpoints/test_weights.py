"""The right weights, really loaded: what a checkpoint may hold, and what may go into a module."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memaudit.checkpoints.load import load_strict
from memaudit.checkpoints.prefixes import strip
from memaudit.checkpoints.unwrap import unwrap
from memaudit.errors import ExitCode, MemauditError, ModelRejected, PremiseBroken, UsageError

ONE = {"conv.weight": torch.ones(2, 2)}
TWO = {"conv.weight": torch.zeros(2, 2)}

# content, --weights, what is found: the tensors and which they are
FOUND: list[tuple[str, object, Any, dict[str, Tensor], str]] = [
    ("bare", ONE, None, ONE, "raw"),
    ("ordered", OrderedDict(ONE), None, ONE, "raw"),
    ("wrapped", {"model": ONE, "optimizer": {}}, None, ONE, "raw"),
    ("wrapped twice", {"model": {"state_dict": ONE}}, None, ONE, "raw"),
    ("raw chosen", {"state_dict": ONE, "state_dict_ema": TWO}, "raw", ONE, "raw"),
    ("average chosen", {"model": ONE, "model_ema": TWO}, "ema", TWO, "ema"),
    ("average equal", {"state_dict": ONE, "state_dict_ema": dict(ONE)}, None, ONE, "raw"),
    ("average only", {"state_dict_ema": TWO}, None, TWO, "ema"),
]


@pytest.mark.parametrize(("content", "weights", "tensors", "which"), [f[1:] for f in FOUND], ids=[f[0] for f in FOUND])
def test_the_weights_are_found(content: object, weights: Any, tensors: dict[str, Tensor], which: str) -> None:
    found = unwrap(content, weights, "x.pt")
    assert found.tensors is tensors or dict(found.tensors) == tensors
    assert found.weights == which


REFUSED: list[tuple[str, object, Any, type[MemauditError], str]] = [
    ("a list", [torch.ones(2)], None, ModelRejected, "holds a list"),
    ("a tensor", torch.ones(2), None, ModelRejected, "holds a Tensor"),
    ("a number", 3, None, ModelRejected, "holds a int"),
    ("nothing", {}, None, ModelRejected, "no tensors"),
    ("optimizer only", {"state": {0: {}}, "param_groups": [{}]}, None, ModelRejected, "optimizer's state"),
    ("optimizer file", {"optimizer": {"state": {}, "param_groups": []}, "step": 3}, None, ModelRejected, "optimizer's"),
    ("flat optimizer", {"conv.weight.exp_avg": torch.ones(2)}, None, ModelRejected, "optimizer's state"),
    ("int keys", {0: torch.ones(2)}, None, ModelRejected, "key 0 is a int"),
    ("None value", {**ONE, "b": None}, None, ModelRejected, "'b' is a NoneType"),
    ("number among tensors", {**ONE, "epoch": 3}, None, ModelRejected, "'epoch' is a int"),
    ("GAN", {"net": ONE, "model": TWO}, None, ModelRejected, "several networks"),
    ("LoRA only", {"q.lora_A.weight": torch.ones(2)}, None, ModelRejected, "only LoRA"),
    ("LoRA on top", {**ONE, "q.lora_A.default.weight": torch.ones(2)}, None, ModelRejected, "unmerged LoRA"),
    ("GPTQ", {"fc.qweight": torch.ones(2), "fc.qzeros": torch.ones(2)}, None, ModelRejected, "quantised"),
    ("bitsandbytes 8 bit", {"fc.weight": torch.ones(2), "fc.SCB": torch.ones(2)}, None, ModelRejected, "quantised"),
    (
        "bitsandbytes 4 bit",
        {"fc.weight.quant_state.bitsandbytes__nf4": torch.ones(2)},
        None,
        ModelRejected,
        "quantised",
    ),
    ("control characters", {"a\x1b[2J": torch.ones(2)}, None, ModelRejected, "not printable"),
    ("average differs", {"state_dict": ONE, "state_dict_ema": TWO}, None, UsageError, "raw and averaged"),
    ("average not there", {"state_dict": ONE}, "ema", UsageError, "no averaged"),
    ("average of a bare table", ONE, "ema", UsageError, "no averaged"),
    ("raw not there", {"state_dict_ema": ONE}, "raw", UsageError, "no raw"),
    (
        "instantiator",
        {"state_dict": ONE, "hyper_parameters": {"_instantiator": "os.system"}},
        None,
        ModelRejected,
        "run",
    ),
]


@pytest.mark.parametrize(
    ("content", "weights", "error", "match"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_is_no_table_of_weights_is_refused(content: object, weights: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        unwrap(content, weights, "x.pt")
    assert caught.value.exit_code == (ExitCode.USAGE if error is UsageError else ExitCode.REJECTED)
    assert caught.value.hint
    assert caught.value.message.isprintable()


def test_only_short_plain_facts_leave_the_child() -> None:
    args = argparse.Namespace(
        model="resnet18", num_classes=7, mean=(0.1, 0.2), model_kwargs={"a": object()}, x="secret"
    )
    about = unwrap({"state_dict": ONE, "args": args, "epoch": float("nan"), "arch": "y" * 300}, None, "x.pt").about
    assert about == {"args": {"model": "resnet18", "num_classes": 7, "mean": [0.1, 0.2], "model_kwargs": {"a": None}}}


@pytest.mark.parametrize(
    ("names", "bare", "prefix"),
    [
        (["module.a", "module.b"], ["a", "b"], "module."),
        (["module._orig_mod.model.a"], ["a"], "module._orig_mod.model."),
        (["net._orig_mod.a.weight", "net._orig_mod.b"], ["a.weight", "b"], "net._orig_mod."),
        (["model.a", "head"], ["model.a", "head"], ""),
        (["module."], ["module."], ""),
    ],
)
def test_a_prefix_goes_only_if_every_name_has_it(names: list[str], bare: list[str], prefix: str) -> None:
    tensors, found = strip({name: torch.ones(1) for name in names}, "x.pt")
    assert (list(tensors), found) == (bare, prefix)


@pytest.mark.parametrize("names", [["a", "module.a"], ["_orig_mod.module.a", "module._orig_mod.a"]])
def test_names_that_collide_are_an_error(names: list[str]) -> None:
    with pytest.raises(ModelRejected, match="same name"):
        strip({name: torch.ones(1) for name in names}, "x.pt")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("table", torch.arange(3))


def fresh() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(Net().state_dict())


def without(*names: str) -> dict[str, Tensor]:
    return {n: t for n, t in fresh().items() if n not in names}


MISFITS: list[tuple[str, dict[str, Tensor], type[MemauditError], str]] = [
    ("missing", without("conv.bias"), ModelRejected, r"1 missing \('conv.bias'\)"),
    ("unexpected", {**fresh(), "head.weight": torch.ones(1)}, ModelRejected, r"1 unexpected \('head.weight'\)"),
    ("shape", {**fresh(), "conv.bias": torch.ones(5)}, ModelRejected, r"'conv.bias' \[5\], model \[4\]"),
    ("broadcastable", {**fresh(), "conv.bias": torch.ones(1)}, ModelRejected, r"\[1\], model \[4\]"),
    ("int8 into float", {**fresh(), "conv.bias": torch.ones(4).to(torch.int8)}, ModelRejected, "'conv.bias' int8"),
    ("complex into float", {**fresh(), "conv.bias": torch.ones(4) * 1j}, ModelRejected, "'conv.bias' complex64"),
    ("bool into float", {**fresh(), "conv.bias": torch.ones(4) > 0}, ModelRejected, "'conv.bias' bool"),
    ("float into integer", {**fresh(), "table": torch.ones(3)}, ModelRejected, "'table' float32, model int64"),
    (
        "NaN",
        {**fresh(), "conv.bias": torch.tensor([1.0, float("nan"), 1, 1])},
        PremiseBroken,
        "'conv.bias' holds 1 NaN",
    ),
    (
        "infinity",
        {**fresh(), "bn.running_var": torch.full((4,), float("inf"))},
        PremiseBroken,
        "'bn.running_var' holds 4",
    ),
    (
        "beyond float32",
        {**fresh(), "conv.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        PremiseBroken,
        "not finite",
    ),
]


@pytest.mark.parametrize(("tensors", "error", "match"), [m[1:] for m in MISFITS], ids=[m[0] for m in MISFITS])
def test_misfits_are_refused_and_leave_the_module_alone(tensors: dict[str, Tensor], error: Any, match: str) -> None:
    module = Net()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        load_strict(module, tensors)
    assert caught.value.exit_code == ExitCode.REJECTED
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in fresh().items()}
    module = Net().to(dtype)
    load_strict(module, tensors)
    assert module.conv.weight.dtype == torch.float32
    assert torch.equal(module.conv.weight, tensors["conv.weight"].float())


def test_every_tensor_is_taken_over() -> None:
    tensors = {n: torch.full_like(t, 3) for n, t in fresh().items()}
    module = Net()
    load_strict(module, tensors)
    assert all((t == 3).all() for t in module.state_dict().values())
    tensors["conv.weight"].zero_()
    assert (module.conv.weight == 3).all()  # nothing is shared with the checkpoint


def test_the_counter_of_batches_may_be_missing_or_halved() -> None:
    load_strict(Net(), without("bn.num_batches_tracked"))
    load_strict(Net(), {**fresh(), "bn.num_batches_tracked": torch.tensor(3.0)})


def test_an_alias_of_a_tied_tensor_may_be_missing() -> None:
    def tied() -> nn.Sequential:
        network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        network[1].weight = network[0].weight
        return network

    for kept in ("0.weight", "1.weight"):
        network = tied()
        load_strict(network, {kept: torch.full((3, 3), 2.0)})
        assert network[0].weight is network[1].weight
        assert (network[0].weight == 2).all()
    with pytest.raises(ModelRejected, match="1 missing"):
        load_strict(
            nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)), {"0.weight": torch.ones(3, 3)}
        )


def test_a_prefix_of_the_modules_own_is_put_back() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    saved = {f"module.{n}": t for n, t in Wrapper().state_dict().items()}
    tensors, prefix = strip(saved, "x.pt")
    assert prefix == "module.model."
    module = Wrapper()
    load_strict(module, tensors, stripped_prefix=prefix)
    assert torch.equal(module.model.weight, saved["module.model.weight"])
