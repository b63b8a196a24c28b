"""Checkpoints as libraries and training scripts write them: read to the very weights, or refused with what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from memaudit.adapters.options import ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from tests.real_inputs.harness import Case, Expected, Ran

ARCH = "test_resnet"
State = dict[str, Tensor]
FACTORY = (
    "import timm, torch\nfrom torch import nn\n\n\n"
    "def build():\n    net = timm.create_model('test_resnet', num_classes=3)\n"
)


@cache
def truth() -> nn.Module:
    """A network whose every tensor is its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(ARCH, num_classes=3)
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return network.eval()


def state() -> State:
    return {n: t.clone() for n, t in truth().state_dict().items()}


def prefixed(prefix: str) -> State:
    return {prefix + n: t for n, t in state().items()}


def average() -> State:
    return {n: t * 0.5 if t.is_floating_point() else t for n, t in state().items()}


def torch_ema(*, values: int | None = None) -> dict[str, Any]:
    """What `ExponentialMovingAverage.state_dict()` of torch_ema holds: the parameters' averages, without names."""
    shadow = [0.5 * p.detach() for p in truth().parameters()][:values]
    return {"decay": 0.995, "num_updates": 17, "shadow_params": shadow, "collected_params": None}


def factory(body: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "network.py").write_text(FACTORY + f"    {body}\n")


def saved(content: Any, name: str = "m.pth", *more: Callable[[Path], object], **options: Any) -> Callable[[Path], None]:
    """Builds `name` with `torch.save`, and whatever more."""

    def build(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content() if callable(content) else content, folder / name, **options)
        for one in more:
            one(folder)

    return build


def hub(folder: Path, file: str = "model.safetensors") -> None:
    """A folder as timm's `save_for_hf` makes it."""
    (folder / "hub").mkdir()
    config = {"architecture": ARCH, "num_classes": 3, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}
    (folder / "hub" / "config.json").write_text(json.dumps(config))
    if file.endswith(".bin"):
        torch.save(state(), folder / "hub" / file)
    else:
        save_file(state(), folder / "hub" / file)


def the_weights(path: str, *, averaged: bool = False, weights: Any = None, adapter: str | None = None) -> Any:
    """Holds where the network that memaudit loads gives plain torch's logits, bit for bit."""

    def holds(ran: Ran) -> None:
        assert ran.code == 0
        found = choose(read(path, weights=weights), ModelOptions(input_size=(3, 32, 32)), adapter)
        network = timm.create_model(ARCH, num_classes=3).eval()
        network.load_state_dict({**state(), **_averaged()} if averaged else state())
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(found.forward(x), network(found.preprocess.normalise(x))), "other logits"

    return holds


def _averaged() -> State:
    return {n: 0.5 * p.detach() for n, p in truth().named_parameters()}


def inspect(path: str = "m.pth", *words: str) -> tuple[str, ...]:
    return ("inspect", path, "--input-size", "32", *words)


def good(name: str, build: Callable[[Path], object], path: str = "m.pth", *, weights: Any = None, **held: Any) -> Case:
    words = ("--weights", weights) if weights else ()
    words += ("--adapter", held["adapter"]) if "adapter" in held else ()
    return Case(
        "checkpoint", name, build, inspect(path, *words), Expected(0, holds=the_weights(path, weights=weights, **held))
    )


def bad(name: str, build: Callable[[Path], object], says: str, *words: str, code: int = 3, **fix: Any) -> Case:
    return Case("checkpoint", name, build, inspect("m.pth", *words), Expected(code, says, **fix))


def lightning(**beside: Tensor) -> dict[str, Any]:
    tensors = {**prefixed("model."), **{n.replace("__", "."): t for n, t in beside.items()}}
    return {"epoch": 3, "global_step": 90, "pytorch-lightning_version": "2.5.0", "state_dict": tensors,
            "callbacks": {}, "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": []}  # fmt: skip


def counted(prefix: str = "") -> State:
    """As thop's `profile` leaves a network: two counters in every module."""
    counters = {f"{n}.{c}" if n else c: torch.zeros(1, dtype=torch.float64)
                for n, _ in truth().named_modules() for c in ("total_ops", "total_params")}  # fmt: skip
    return {prefix + n: t for n, t in (state() | counters).items()}


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
WRAPPED = factory("class Wrap(nn.Module):\n        def __init__(self):\n            super().__init__()\n"
                  "            self.net = net\n        def forward(self, x):\n            return self.net(x)\n"
                  "    return Wrap()")  # fmt: skip
BUFFERED = factory("class Wrap(nn.Module):\n        def __init__(self):\n            super().__init__()\n"
                   "            self.net = net\n            self.register_buffer('mean', torch.zeros(3))\n"
                   "        def forward(self, x):\n            return self.net(x)\n    return Wrap()")  # fmt: skip
CODE = "network.py:build"

CASES = [
    good("bare state dict", saved(state)),
    good("before torch 1.6", saved(state, _use_new_zipfile_serialization=False)),
    good(
        "the tutorial's dictionary",
        saved(
            lambda: {
                "epoch": 3,
                "model_state_dict": state(),
                "loss": torch.tensor(0.3),
                "optimizer_state_dict": OPTIMIZER,
            }
        ),
    ),
    good(
        "torchvision's reference script",
        saved(
            lambda: {
                "model": state(),
                "optimizer": OPTIMIZER,
                "epoch": 3,
                "args": argparse.Namespace(lr=0.1),
                "lr_scheduler": {},
            }
        ),
    ),
    good("settings under a known key", saved(lambda: {"model_state_dict": state(), "params": {"lr": 0.1}})),
    good("settings under two known keys", saved(lambda: {"net": state(), "params": {"lr": 1}, "model": {"depth": 18}})),
    good("loss weights under a known key", saved(lambda: {"state_dict": state(), "weights": {"ce": 1.0, "kl": 0.5}})),
    good("a key nobody knows", saved(lambda: {"classifier_v2": state(), "epoch": 3, "opt": OPTIMIZER})),
    good("a key nobody knows, a tensor beside it", saved(lambda: {"resnet": state(), "best_acc": torch.tensor(0.9)})),
    good("torch_ema beside the model, raw", saved(lambda: {"model": state(), "ema": torch_ema()}), weights="raw"),
    good(
        "torch_ema beside the model, averaged",
        saved(lambda: {"model": state(), "ema": torch_ema()}),
        weights="ema",
        averaged=True,
    ),
    bad(
        "torch_ema beside the model, nobody chose",
        saved(lambda: {"model": state(), "ema": torch_ema()}),
        "raw and averaged (EMA) weights, and they differ",
        code=2,
        then=("--weights", "raw"),
    ),
    bad(
        "torch_ema of another number of parameters",
        saved(lambda: {"model": state(), "ema": torch_ema(values=3)}),
        "does not fit its network",
        "--weights",
        "ema",
    ),
    bad("torch_ema alone", saved(lambda: {"ema": torch_ema()}), "ema.copy_to(model.parameters())"),
    good(
        "Lightning with a weighted loss", saved(lambda: lightning(criterion__weight=torch.ones(3)), "m.ckpt"), "m.ckpt"
    ),
    good("Lightning with pos_weight", saved(lambda: lightning(loss_fn__pos_weight=torch.ones(3)), "m.ckpt"), "m.ckpt"),
    good(
        "Lightning with metrics",
        saved(lambda: lightning(val_acc__tp=torch.ones(3), train_f1__fn=torch.ones(3)), "m.ckpt"),
        "m.ckpt",
    ),
    good(
        "Lightning, the network is self.backbone",
        saved(lambda: {"state_dict": prefixed("backbone.")}, "m.ckpt"),
        "m.ckpt",
    ),
    good(
        "Lightning, two attributes deep", saved(lambda: {"state_dict": prefixed("learner.model.")}, "m.ckpt"), "m.ckpt"
    ),
    bad(
        "a teacher beside the student",
        saved(lambda: {"state_dict": prefixed("student.") | prefixed("teacher.")}),
        "no architecture of timm",
    ),
    good("thop's counters", saved(counted)),
    good("thop's counters under DataParallel", saved(lambda: counted("module."))),
    good("hub folder", lambda f: hub(f), "hub"),
    good("the file in a hub folder", lambda f: hub(f), "hub/model.safetensors"),
    good("the old file in a hub folder", lambda f: hub(f, "pytorch_model.bin"), "hub/pytorch_model.bin"),
    good("AveragedModel's own file", saved(lambda: AveragedModel(truth()).state_dict())),
    good(
        "a factory that returns AveragedModel",
        saved(state, "m.pth", factory("return torch.optim.swa_utils.AveragedModel(net)")),
        adapter=CODE,
    ),
    good(
        "AveragedModel on both sides",
        saved(
            lambda: AveragedModel(truth()).state_dict(),
            "m.pth",
            factory("return torch.optim.swa_utils.AveragedModel(net)"),
        ),
        adapter=CODE,
    ),
    good(
        "a factory that returns DataParallel",
        saved(state, "m.pth", factory("return nn.DataParallel(net)")),
        adapter=CODE,
    ),
    good("a wrapper around the network", saved(state, "m.pth", WRAPPED), adapter=CODE),
    good("a wrapper around Lightning's weights", saved(lightning, "m.ckpt", WRAPPED), "m.ckpt", adapter=CODE),
    bad("a wrapper with buffers of its own", saved(state, "m.pth", BUFFERED), "persistent=False", "--adapter", CODE),
    bad(
        "two networks in one file",
        saved(lambda: {"generator": state(), "discriminator": average()}),
        "several networks (generator, discriminator)",
    ),
    bad(
        "parameters without statistics",
        saved(lambda: dict(truth().named_parameters())),
        "save model.state_dict()",
        "--arch",
        ARCH,
    ),
    bad(
        "a new head",
        saved(lambda: {n.replace("fc.", "fc.1."): t for n, t in state().items()}),
        "net.fc = torch.nn.Sequential(..., net.fc)",
        "--arch",
        ARCH,
    ),
    bad("the newer pickle protocol", saved(state, pickle_protocol=4), "memaudit convert --trust-pickle --sha256 "),
    bad("an optimizer's file", saved(OPTIMIZER), "an optimizer's state and no weights"),
]
