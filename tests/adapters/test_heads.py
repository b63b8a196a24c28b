"""Whatever a network returns, its logits are found, or the error says what was returned instead."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memaudit.adapters import heads
from memaudit.adapters.base import Adapter
from memaudit.data import Preprocess
from memaudit.engine.answers import confidence, margin
from memaudit.errors import ModelRejected

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Outputs = namedtuple("Outputs", "logits aux_logits")


@dataclass
class ModelOutput:
    logits: Tensor
    loss: None = None


FORMS: dict[str, Any] = {
    "tensor": Z,
    "tuple": (Z, 2 * Z),
    "list": [Z],
    "inception's pair": Outputs(Z, 2 * Z),
    "dataclass": ModelOutput(Z),
    "object": SimpleNamespace(logits=Z, hidden=3 * Z),
    "dict": {"features": 2 * Z, "logits": Z},
    "dict of one": {"out": Z},
    "one pixel": Z[:, :, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found_in_every_form(form: str) -> None:
    assert torch.equal(heads.logits_of(FORMS[form], 4), Z)


@pytest.mark.parametrize(("form", "count"), [("tuple", 1), ("inception's pair", 0), ("list", 0), ("dict", 0)])
def test_others_of_the_same_shape_are_counted_where_no_name_says_which(form: str, count: int) -> None:
    assert heads.further(FORMS[form]) == count
    assert heads.further((Z, Z[:, :2], None, [Z])) == 0


@pytest.mark.parametrize("output", [Z[:, 0], Z[:, :1], Z[:, :1, None]])
def test_one_logit_an_example_is_a_column(output: Tensor) -> None:
    assert torch.equal(heads.logits_of(output, 4), Z[:, :1])


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, "returned NoneType"),
    "two tensors without a name": ({"a": Z, "b": Z}, "returned dict with a, b"),
    "a number": (Z.sum(), r"shape \(\)"),
    "a map": (torch.zeros(4, 3, 8, 8), r"shape \(4, 3, 8, 8\)"),
    "too many rows": (torch.zeros(8, 3), r"for 4 examples"),
    "predictions": (Z.argmax(1), "int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_holds_no_logits_is_refused_by_what_it_is(case: str) -> None:
    output, message = REFUSED[case]
    with pytest.raises(ModelRejected, match=message) as caught:
        heads.logits_of(output, 4)
    assert "forward returns" in caught.value.hint


def adapter(module: nn.Module, *, multi_label: bool = False) -> Adapter:
    made = Adapter(module, architecture="test", preprocess=Preprocess((5,)))
    made.multi_label = multi_label
    return made


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last", [nn.Identity(), nn.Flatten(0), nn.Sigmoid()])
def test_one_logit_is_two_classes_whether_or_not_it_is_a_probability(last: nn.Module) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    found = adapter(nn.Sequential(body, last))
    z = body(X)[:, 0]
    assert found.num_classes == 2
    logits = found.forward(X)
    assert torch.allclose(margin(logits, torch.ones(6, dtype=torch.long)), z, atol=1e-4)
    assert torch.allclose(confidence(logits, torch.zeros(6, dtype=torch.long)).float(), torch.sigmoid(-z), atol=1e-4)


def test_a_row_of_several_labels_answers_the_one_it_is_asked_for() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    found = adapter(body, multi_label=True)
    assert found.num_classes == 6
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    given = X.clone().requires_grad_()
    with heads.asking(labels):
        logits = found.forward(given)
    sign = torch.tensor([-1.0, 1.0] * 3)
    asked = body(given)[torch.arange(6), labels // 2]
    assert torch.allclose(margin(logits, labels), sign * asked, atol=1e-5)
    assert torch.allclose(confidence(logits, labels).float(), torch.sigmoid(sign * asked), atol=1e-5)
    loss = nn.functional.cross_entropy(logits, labels)
    slow = nn.functional.binary_cross_entropy_with_logits(asked, (labels % 2).float())
    assert torch.allclose(loss, slow, atol=1e-5)
    gradients = [torch.autograd.grad(one, given, retain_graph=True)[0] for one in (loss, slow)]
    assert torch.allclose(*gradients, atol=1e-5)
