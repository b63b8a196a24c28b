"""Checkpoints of older timm releases: the same tensors by today's names, or as they were."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor

from memaudit.adapters.renamed import in_current_names

SWIN = "swin_tiny_patch4_window7_224"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def swin() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model(SWIN, num_classes=7).state_dict())


def older(state: State) -> State:
    """As timm 0.6 named them: downsampling ends the stage before, the head is one layer, tables are saved."""

    def name(new: str) -> str:
        moved = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", new)
        return moved.replace("head.fc.", "head.")

    tables = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49).long()}
    return {name(n): t for n, t in state.items()} | tables | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}


def test_swin_of_timm_0_6_gets_the_names_of_today_bit_for_bit(swin: State) -> None:
    found = in_current_names(SWIN, older(swin))
    assert found.keys() == swin.keys()
    assert all(torch.equal(found[n], swin[n]) for n in swin)


def test_a_checkpoint_with_a_weight_too_many_stays_as_it_is(swin: State) -> None:
    odd = older(swin) | {"extra.weight": torch.ones(3)}
    assert in_current_names(SWIN, odd) is odd


def test_a_checkpoint_of_today_stays_as_it_is(swin: State) -> None:
    assert in_current_names(SWIN, swin) is swin
