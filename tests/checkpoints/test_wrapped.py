"""What people wrap checkpoints in: read to the same bits, or refused with a fix that works when followed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.optim.swa_utils import AveragedModel

from memaudit.adapters.base import ModelOptions
from memaudit.adapters.registry import choose
from memaudit.checkpoints import read
from memaudit.checkpoints.archive import read_pickle
from memaudit.checkpoints.child import plain_tensor
from memaudit.checkpoints.load import load_strict
from memaudit.checkpoints.opcodes import scan
from memaudit.checkpoints.reader import bare
from memaudit.checkpoints.source import opened
from memaudit.checkpoints.unwrap import unwrap
from memaudit.errors import ModelRejected, UsageError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=5).eval()  # type: ignore[no-any-return]


def inside(network: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> State:
    """The state of a copy with one of its layers wrapped."""
    changed = copy.deepcopy(network)
    changed.layer1 = wrap(changed.layer1)  # type: ignore[arg-type]
    return changed.state_dict()


def marked(state: State, **attributes: object) -> State:
    """Each tensor with attributes of its own, as FSDP marks the ones it gathers for its full state dict."""
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    for tensor in copies.values():
        vars(tensor).update(attributes)
    return copies


def lightning(network: nn.Module, prefix: str) -> dict[str, Any]:
    return {
        "state_dict": {prefix + n: t for n, t in network.state_dict().items()},
        "pytorch-lightning_version": "2.5.0", "epoch": 1, "global_step": 30, "callbacks": {}, "loops": {},
        "optimizer_states": [{"state": {}, "param_groups": []}], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip


def deepspeed(state: State) -> dict[str, Any]:
    """As DeepSpeed's engine saves one process's model states."""
    shapes = [{n: t.shape for n, t in state.items()}]
    return {"module": state, "param_shapes": shapes, "buffer_names": [], "optimizer": None, "ds_config": {"zero": 2},
            "ds_version": "0.17", "dp_world_size": 1, "global_steps": 3, "shared_params": {}}  # fmt: skip


def mmpretrain(state: State) -> dict[str, Any]:
    named = {("head." + n if n.startswith("fc.") else "backbone." + n): t for n, t in state.items()}
    return {"meta": {"cfg": "resnet.py", "epoch": 100}, "state_dict": named}


# what is saved of a network
READ: dict[str, Callable[[nn.Module], object]] = {
    "DataParallel": lambda n: nn.DataParallel(n).state_dict(),
    "compiled": lambda n: torch.compile(n).state_dict(),  # type: ignore[attr-defined]
    "compiled layer": lambda n: inside(n, torch.compile),  # type: ignore[arg-type]
    "compiled, then parallel": lambda n: nn.DataParallel(torch.compile(n)).state_dict(),  # type: ignore[arg-type]
    "activation checkpointing": lambda n: inside(n, checkpoint_wrapper),
    "names that FSDP leaves": lambda n: {
        "_fsdp_wrapped_module." + k.replace("layer1.", "layer1._fsdp_wrapped_module."): v
        for k, v in n.state_dict().items()
    },
    "gathered by FSDP": lambda n: marked(n.state_dict(), _has_been_cloned=True),
    "gathered": lambda n: get_model_state_dict(n, options=StateDictOptions(full_state_dict=True)),
    "AveragedModel": lambda n: AveragedModel(n).state_dict(),
    "timm's average": lambda n: ModelEmaV3(n).state_dict(),
    "timm's average, kept alone": lambda n: {"state_dict_ema": ModelEmaV3(n).module.state_dict()},
    "ema": lambda n: {"ema": n.state_dict(), "updates": 3},
    "model_state_dict": lambda n: {"epoch": 3, "model_state_dict": n.state_dict(), "loss": torch.tensor(0.1)},
    "Lightning": lambda n: lightning(n, "model."),
    "Lightning, compiled": lambda n: lightning(n, "model._orig_mod."),
    "DeepSpeed, ZeRO 2": lambda n: deepspeed(n.state_dict()),
    "fastai": lambda n: {"model": n.state_dict(), "opt": {"state": [{}], "hypers": [{"lr": 0.1}]}},
}


@pytest.mark.parametrize("form", READ)
def test_wrapped_weights_are_the_same_bits(tmp_path: Path, network: nn.Module, form: str) -> None:
    """Without the child process that `read` opens pickles in: one for each would take a minute."""
    content = loaded(READ[form](network), tmp_path / "x.pt")
    same(bare(unwrap(content, None, "x.pt").tensors, "x.pt")[0], network.state_dict())


def loaded(saved: object, path: Path) -> object:
    """What the checks of `read` and torch's restricted loader let through of a saved object."""
    torch.save(saved, path)
    with opened(path) as source:
        scan(read_pickle(source), source.name)
    return torch.load(path, weights_only=True)


def test_attributes_that_hide_a_tensors_own_methods_are_left_behind(tmp_path: Path, network: nn.Module) -> None:
    hiding = dict.fromkeys(("numel", "detach", "contiguous", "resolve_conj"), "none")
    content = loaded(marked(network.state_dict(), **hiding), tmp_path / "x.pt")
    tensors = unwrap(content, None, "x.pt").tensors
    size = (tmp_path / "x.pt").stat().st_size
    same({n: plain_tensor(n, t, "x.pt", size) for n, t in tensors.items()}, network.state_dict())


def same(found: Any, state: State) -> None:
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], t) for n, t in state.items())


def test_shards_with_an_index_are_the_same_bits(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    names = list(state)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({n: state[n] for n in part}, tmp_path / file)
    table = {n: file for file, part in parts.items() for n in part}
    (tmp_path / "model.safetensors.index.json").write_text(str({"weight_map": table}).replace("'", '"'))
    same(read(tmp_path).tensors, state)


def test_mmpretrain_is_identified_by_plain_names_and_loads_by_its_own(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=3)
    torch.save(mmpretrain(network.state_dict()), tmp_path / "x.pth")
    checkpoint = read(tmp_path / "x.pth")
    adapter = choose(checkpoint, ModelOptions(arch="resnet18"))
    same(adapter.module.state_dict(), network.state_dict())
    same(adapter.state_of(checkpoint), network.state_dict())  # as the checkpoints of a series are read
    own = nn.Module()
    own.backbone, own.head = nn.Linear(2, 2), nn.ModuleDict({"fc": nn.Linear(2, 2)})
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    load_strict(own, read(tmp_path / "own.safetensors").tensors)  # a user's network with such names keeps them


def test_two_averages_of_one_network_are_a_question(tmp_path: Path, network: nn.Module) -> None:
    averaged = AveragedModel(network).state_dict()
    averaged["module.fc.bias"] = averaged["module.fc.bias"] + 1
    torch.save({"model": network.state_dict(), "swa_state_dict": averaged}, tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    with pytest.raises(UsageError, match="raw and averaged"):
        unwrap(content, None, "x.pt")
    same(unwrap(content, "raw", "x.pt").tensors, network.state_dict())


def test_names_that_collide_without_their_wrappers_are_refused() -> None:
    with pytest.raises(ModelRejected, match="become the same"):
        bare({"a._orig_mod.b": torch.ones(1), "a.b": torch.zeros(1), "c": torch.ones(1)}, "x.pt")


# ---- refused, with a fix that is tried ---------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_a_distributed_checkpoint_is_gathered_by_the_command_that_the_hint_names(
    tmp_path: Path, network: nn.Module, nested: bool
) -> None:
    import torch.distributed.checkpoint as dcp

    state = network.state_dict()
    dcp.save({"model": state} if nested else state, checkpoint_id=tmp_path / "run" / "step")
    with pytest.raises(ModelRejected, match="distributed checkpoint") as caught:
        read(tmp_path / "run")
    command = caught.value.hint.partition("gather it first: python ")[2].replace("model.pt", str(tmp_path / "model.pt"))
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True)
    same(read(tmp_path / "model.pt").tensors, state)


def test_flat_parameters_of_fsdp_are_refused(tmp_path: Path) -> None:
    save_file({"_fsdp_wrapped_module._flat_param": torch.ones(9), "n": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelRejected, match="one process's share") as caught:
        read(tmp_path / "x.safetensors")
    assert "get_model_state_dict" in caught.value.hint  # tried above, as "gathered"
    for name in ("torch._utils _rebuild_wrapper_subclass", "torch.distributed.tensor DTensor"):  # FSDP 2, not gathered
        with pytest.raises(ModelRejected, match="one process's share"):
            scan(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n.", "x.pt")


def test_deepspeed_in_parts_is_refused_with_its_own_script(tmp_path: Path, network: nn.Module) -> None:
    state = network.state_dict()
    folder = tmp_path / "checkpoint"
    (folder / "global_step3").mkdir(parents=True)
    (folder / "latest").write_text("global_step3")
    (folder / "zero_to_fp32.py").write_text("")
    part = folder / "global_step3" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({**deepspeed(state), "module": {n: t.new_zeros(0) for n, t in state.items()}}, part)
    for path, whole in ((folder, folder), (part.parent, folder), (part, Path("FOLDER"))):
        with pytest.raises(ModelRejected, match="DeepSpeed") as caught:
            read(path)
        assert f"python {whole}/zero_to_fp32.py {whole} OUT" in caught.value.hint
    save_file(state, folder / "model.safetensors")  # what the script writes
    same(read(folder).tensors, state)


# module and class of an object beside the weights, what the hint says
TOOLKITS = [
    ("fastcore.foundation", "L", "learn.save(name, with_opt=False)"),
    ("mmengine.logging.history_buffer", "HistoryBuffer", "publish_model.py"),
    ("fastai.learner", "Learner", "learn.model.state_dict()"),
]


@pytest.mark.parametrize(("module", "name", "says"), TOOLKITS)
def test_objects_of_a_toolkit_are_refused_with_the_way_to_save_without(
    tmp_path: Path, network: nn.Module, monkeypatch: pytest.MonkeyPatch, module: str, name: str, says: str
) -> None:
    made = types.ModuleType(module)
    kind = type(name, (), {"__module__": module})
    setattr(made, name, kind)
    monkeypatch.setitem(sys.modules, module, made)
    for parent in ("fastcore", "fastai", "mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    assert pickle.dumps(kind())
    torch.save({"model": network.state_dict(), "beside": kind()}, tmp_path / "x.pth")
    with pytest.raises(ModelRejected, match="objects of its toolkit") as caught:
        read(tmp_path / "x.pth")
    assert says in caught.value.hint
    same(unwrap({"state_dict": network.state_dict()}, None, "x.pth").tensors, network.state_dict())  # the fixes' file
