"""Weights that lie anywhere in memory: kernels chosen by alignment must not cost a finished audit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memaudit.adapters.base import Adapter
from memaudit.audits.rewind import check_controls
from memaudit.checkpoints import read
from memaudit.checkpoints.load import ALIGNMENT, load_strict
from memaudit.engine.evaluator import Evaluator, Panel
from memaudit.errors import PremiseBroken
from memaudit.network.layer_groups import layer_groups
from memaudit.network.replay import watch
from memaudit.network.states import State, canonical
from tests.conftest import DIGIT, Trained
from tests.networks import DigitsNet


def test_weights_are_loaded_into_memory_of_our_own(trained: Trained, tmp_path: Path) -> None:
    odd = {"a": torch.ones(1), **trained.module.state_dict()}  # the file's tensors start 4 bytes later
    save_file(odd, tmp_path / "m.safetensors")
    tensors = {n: t for n, t in read(tmp_path / "m.safetensors").tensors.items() if n != "a"}
    assert any(t.data_ptr() % ALIGNMENT for t in tensors.values())
    module = DigitsNet()
    module.load_state_dict(tensors, assign=True)
    load_strict(module, tensors)
    assert not any(t.data_ptr() % ALIGNMENT for t in module.state_dict().values() if t.numel())
    assert all(torch.equal(t, tensors[n]) for n, t in module.state_dict().items())


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, one element further."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    place = room[1:].view(tensor.shape)
    place.copy_(tensor)
    return place


def test_the_rewinding_control_allows_what_equal_runs_differ_by(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = copy.deepcopy(trained.module)
    adapter = Adapter(module, architecture="DigitsNet", preprocess=DIGIT)
    evaluator, plain, slip = Evaluator(adapter, 8), module.forward, 1e-6
    monkeypatch.setattr(
        module, "forward", lambda x: plain(x) + (slip if module.head.weight.data_ptr() % ALIGNMENT else 0)
    )
    use = watch(module, adapter.forward, trained.reference.batch(range(2), evaluator.device)).first_use
    groups = layer_groups(module, use, depth=None, layers=None)
    tensors = {n: unaligned(t) for n, t in canonical(module, module.state_dict()).items()}
    panel = Panel(trained.reference, range(8))
    check_controls(evaluator, groups, [State("audited model", tensors, final=True)], panel)
    wrong = {**tensors, "head.bias": tensors["head.bias"] + 1e-3}
    with pytest.raises(PremiseBroken, match=r"they differ by 0\.001, two equal runs by"):
        check_controls(evaluator, groups, [State("audited model", wrong, final=True)], panel)
