"""Example-tied dropout in checkpoints: five integers a layer, from which a network built plain is tied again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from memaudit.errors import ModelRejected
from memaudit.network.tied_dropout.layer import RULE, ExampleTiedDropout
from memaudit.network.tied_dropout.tie import CHILD, tie
from memaudit.text import clean


def split_rules(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict in two: the network's own tensors, and by layer the rule `(5,)` of the dropout it is tied to."""
    end = f".{CHILD}.{RULE}"
    rules = {name.removesuffix(end): value for name, value in tensors.items() if name.endswith(end)}
    return {name: value for name, value in tensors.items() if not name.endswith(end)}, rules


def restore(model: nn.Module, rules: Mapping[str, Tensor]) -> None:
    """Tie the layers of a network that was built plain, as the checkpoint's `rules` say.

    Raises:
        ModelRejected: a rule is none, or its layer does not exist.
    """
    for path, rule in rules.items():
        values = rule.tolist() if rule.dtype == torch.int64 and rule.shape == (5,) else []
        module = dict(model.named_modules()).get(path)
        if module is None or not _is_rule(values):
            raise ModelRejected(
                f"the checkpoint's example-tied dropout at {clean(path)!r} is damaged",
                hint="Save the state dict of the network that add_tied_dropout returned.",
            )
        layer = ExampleTiedDropout(values[0], axis=None if values[1] < 0 else values[1])
        layer.rule.copy_(rule)
        tie(module, layer)


def _is_rule(values: Sequence[int]) -> bool:
    if len(values) != 5:
        return False
    channels, axis, generalizing, threshold, _ = values
    widest = 1 << 20
    return 0 < channels <= widest and -1 <= axis < 8 and 0 <= generalizing <= channels and 0 <= threshold <= 1 << 32
