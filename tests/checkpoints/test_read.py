"""Checkpoints people really have: every format and wrapper gives the tensors that were saved."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor

from memaudit.checkpoints import Facts, fingerprint, read
from memaudit.errors import ModelRejected, UsageError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model("test_resnet", num_classes=7).state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def training(state: State) -> dict[str, Any]:
    args = argparse.Namespace(model="test_resnet", num_classes=7, mean=[0.1, 0.2, 0.3], img_size=None, output="/x")
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"epoch": 3, "arch": "test_resnet", "state_dict": state, "optimizer": optimizer, "args": args, "metric": 0.5}


# file name, how it is written, prefix that reading takes off
GOOD: list[tuple[str, Callable[[State, Path], object], str]] = [
    ("plain.safetensors", lambda s, p: save_file(s, p), ""),
    ("plain.pt", lambda s, p: torch.save(s, p), ""),
    ("before_torch_1_6.pth", lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False), ""),
    ("timm.pth.tar", lambda s, p: torch.save(training(s), p), ""),
    (
        "lightning.ckpt",
        lambda s, p: torch.save({"pytorch-lightning_version": "2.5", "state_dict": prefixed(s, "model.")}, p),
        "model.",
    ),
    ("compiled.bin", lambda s, p: torch.save({"model": prefixed(s, "_orig_mod.module.")}, p), "_orig_mod.module."),
    ("parallel.safetensors", lambda s, p: save_file(prefixed(s, "module._orig_mod."), p), "module._orig_mod."),
    (
        "averaged.safetensors",
        lambda s, p: save_file({"n_averaged": torch.tensor(3), **prefixed(s, "module.")}, p),
        "module.",
    ),
]


@pytest.mark.parametrize(("name", "write", "prefix"), GOOD, ids=[g[0] for g in GOOD])
def test_reads_what_was_saved(state: State, tmp_path: Path, name: str, write: Any, prefix: str) -> None:
    path = tmp_path / name
    write(state, path)
    checkpoint = read(path)
    assert checkpoint.tensors.keys() == state.keys()
    assert all(torch.equal(checkpoint.tensors[n], t) for n, t in state.items())
    assert checkpoint.stripped_prefix == prefix
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == fingerprint(path)
    assert checkpoint.format == ("safetensors" if name.endswith("safetensors") else "torch")


def test_odd_tensors_survive(tmp_path: Path) -> None:
    state = {
        "halves.0": torch.arange(6, dtype=torch.bfloat16).view(2, 3).t(),
        "double": torch.ones(2, dtype=torch.float64),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "slice": torch.arange(10.0)[3:7],
    }
    torch.save({**state, "parameter": torch.nn.Parameter(torch.ones(2))}, tmp_path / "odd.pt")
    tensors = read(tmp_path / "odd.pt").tensors
    assert torch.equal(tensors["parameter"], torch.ones(2))
    for name, tensor in state.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_facts_of_a_timm_checkpoint(state: State, tmp_path: Path) -> None:
    torch.save(training(state), tmp_path / "last.pth.tar")
    facts = read(tmp_path / "last.pth.tar").facts
    assert (facts.architecture, facts.num_classes, facts.epoch) == ("test_resnet", 7, 3)
    assert facts.origin == "arch in the checkpoint"
    assert facts.preprocess == {"mean": (0.1, 0.2, 0.3)}


def test_facts_of_a_config_keep_only_plain_known_values(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": 7,
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "mean": [0.5, 0.5, float("inf")],
            "std": [0.5, 0, 0.5],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "url": "https://example.org/evil.pth",
        },
        "model_args": {
            "drop_rate": 0.1,
            "pretrained": True,
            "checkpoint_path": "/etc/passwd",
            "f": {"a": 1},
            "g": "x\n",
        },
        "label_names": ["a", "b\x1b[2J"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read(tmp_path).facts
    assert facts.model_kwargs == {"drop_rate": 0.1}
    assert facts.preprocess == {"input_size": (3, 96, 96), "crop_pct": 0.9, "interpolation": "bilinear"}
    assert facts.class_names == ("a", "b\\x1b[2J")


@pytest.mark.parametrize("name", ["../../evil", "hf-hub:evil/model", "local-dir:/tmp", "a b", "x" * 300, 7])
def test_an_architecture_that_is_no_registry_name_is_no_fact(state: State, tmp_path: Path, name: object) -> None:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
    assert read(tmp_path).facts == Facts()


def test_ema_and_raw_that_differ_must_be_chosen(state: State, tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    path = tmp_path / "last.pth.tar"
    torch.save({**training(state), "state_dict_ema": averaged}, path)
    with pytest.raises(UsageError, match="raw and averaged"):
        read(path)
    chosen = read(path, weights="ema")
    assert chosen.weights == "ema"
    assert torch.equal(chosen.tensors["fc.bias"], averaged["fc.bias"])
    assert torch.equal(read(path, weights="raw").tensors["fc.bias"], state["fc.bias"])


def test_save_model_leaves_out_the_alias(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_model(network, str(tmp_path / "tied.safetensors"))
    assert len(read(tmp_path / "tied.safetensors").tensors) == 3


def test_a_git_lfs_pointer_proves_the_file_it_stands_for(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    digest = fingerprint(tmp_path / "model.safetensors")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 3\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert fingerprint(tmp_path / "model.safetensors") == digest


def test_hashing_a_checkpoint_loads_no_torch(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    code = "import sys, memaudit.checkpoints as c; print(c.fingerprint(sys.argv[1]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert printed == [fingerprint(tmp_path), "False"]


def write_shards(state: State, folder: Path) -> None:
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: state[n] for n in part}, folder / file)
    table = {n: file for file, part in parts.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_shards_are_read_as_one(state: State, tmp_path: Path) -> None:
    write_shards(state, tmp_path)
    checkpoint = read(tmp_path)
    assert checkpoint.tensors.keys() == state.keys()
    assert checkpoint.path.name == "model.safetensors.index.json"
    assert checkpoint.sha256 == fingerprint(tmp_path)
    assert read(checkpoint.path).sha256 == checkpoint.sha256


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", ".x.pt", "x.py", 3])
def test_a_shard_outside_the_folder_is_refused(state: State, tmp_path: Path, shard: object) -> None:
    write_shards(state, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.bias": shard}}))
    with pytest.raises(ModelRejected, match="no bare name"):
        read(tmp_path)


def test_a_shard_of_another_checkpoint_is_refused(state: State, tmp_path: Path) -> None:
    write_shards(state, tmp_path)
    save_file({"fc.bias": state["fc.bias"]}, tmp_path / "b.safetensors")
    with pytest.raises(ModelRejected, match="does not hold the tensors"):
        read(tmp_path)


def test_a_timm_run_gives_its_best_checkpoint_once(state: State, tmp_path: Path) -> None:
    torch.save(training(state), tmp_path / "last.pth.tar")
    os.link(tmp_path / "last.pth.tar", tmp_path / "model_best.pth.tar")
    os.link(tmp_path / "last.pth.tar", tmp_path / "checkpoint-3.pth.tar")
    (tmp_path / "args.yaml").write_text("model: test_resnet\n")
    checkpoint = read(tmp_path)
    assert checkpoint.path.name == "model_best.pth.tar"
    assert checkpoint.facts.epoch == 3


# what the folder holds -> error
FOLDERS: list[tuple[str, dict[str, str], type[Exception], str]] = [
    ("empty", {}, ModelRejected, "holds no checkpoint"),
    ("two checkpoints", {"a.pt": "x", "b.pt": "y"}, UsageError, "holds 2 checkpoints"),
    ("adapters only", {"adapter_config.json": "{}", "adapter_model.bin": ""}, ModelRejected, "LoRA"),
    ("distributed", {"__0_0.distcp": "", ".metadata": ""}, ModelRejected, "distributed checkpoint"),
    ("broken config", {"config.json": "{", "model.safetensors": ""}, ModelRejected, "not valid JSON"),
    ("config is a list", {"config.json": "[]", "model.safetensors": ""}, ModelRejected, "no object"),
    ("broken index", {"pytorch_model.bin.index.json": "[1]"}, ModelRejected, "sound index"),
]


@pytest.mark.parametrize(("files", "error", "match"), [f[1:] for f in FOLDERS], ids=[f[0] for f in FOLDERS])
def test_folders_without_one_checkpoint(tmp_path: Path, files: dict[str, str], error: Any, match: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=match):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFO")
def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ModelRejected, match="not a regular file"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["absent.pt", "nul\0.pt", "no\x1b[2Jsuch.pt"])
def test_a_missing_file_is_named_harmlessly(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelRejected, match="cannot open") as caught:
        read(tmp_path / name)
    assert caught.value.message.isprintable()
