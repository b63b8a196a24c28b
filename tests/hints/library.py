"""Hints that only somebody's Python code meets: a library call, tied dropout, an adapter of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset

import memaudit
from memaudit.adapters.base import Adapter
from memaudit.data import Preprocess, from_dataset, from_tensors
from memaudit.data.classes import Classes
from memaudit.data.texts import list_texts
from memaudit.erase.request import check_editable
from memaudit.network.layer_groups import layer_groups
from memaudit.network.tied_dropout import add_tied_dropout, example_ids, strip_tied_dropout
from memaudit.network.tied_dropout.layer import ExampleTiedDropout
from memaudit.network.tied_dropout.rules import restore, split_rules
from memaudit.pipeline.sizes import settle_size
from memaudit.testing import check_adapter, check_installed
from tests import test_testing as promises
from tests.hints.follow import InCode
from tests.pipeline.test_sizes import network, reader
from tests.real_inputs.pictures import Net, fit, pictures

FAST = {"profile": "fast", "max_units": 2, "device": "cpu"}


def broken(kind: str) -> Callable[[], object]:
    """An adapter that breaks one promise."""
    make = next(make for name, make, _ in promises.BROKEN if name == kind)
    return lambda: check_adapter(make())


def kept() -> object:
    return check_adapter(promises.Plain())


def example_of(adapter: type[Adapter]) -> Callable[[], object]:
    def tested() -> object:
        with mock.patch("memaudit.testing.load_class", return_value=adapter):
            return check_installed("mine")

    return tested


class WithExample(promises.Plain):
    @classmethod
    def example(cls) -> Adapter:
        return cls()


def audited(flagged: Any) -> Callable[[], object]:
    """The pictures of `flagged`, made from some images and their labels, audited."""

    def run() -> object:
        x, truth = pictures()
        images, labels = torch.tensor(x[:80]).permute(0, 3, 1, 2).float() / 255, torch.tensor(truth[:80])
        network = fit(images, labels.tolist())
        return memaudit.audit(network, flagged(images[:4], labels[:4]), (images[20:], labels[20:]), **FAST)

    return run


def plain(images: Tensor, labels: Tensor) -> Any:
    return images, labels


def tied(image: int = 16) -> nn.Module:
    return add_tied_dropout(Net(), "three", input_size=(3, image, image))


def in_training(ids: int) -> object:
    network = tied().train()
    if not ids:
        return network(torch.rand(3, 3, 16, 16))
    with example_ids(range(ids)):
        return network(torch.rand(3, 3, 16, 16))


class Placed(Net):
    """The dropout stands behind a softmax, a GELU or the layer itself."""

    def __init__(self, placed: str = "softmax") -> None:
        super().__init__()
        self.placed, self.tie = placed, ExampleTiedDropout(64, 0.5, 0.5, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.one(x).relu(), 2)
        x = self.fc(self.three(nn.functional.max_pool2d(self.two(x).relu(), 2)).relu().flatten(1))
        between = {"softmax": x.softmax(1), "gelu": nn.functional.gelu(x)}
        return self.head(self.tie(between.get(self.placed, x)).relu())


def stripped(placed: str, mode: Any = "drop") -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return strip_tied_dropout(Placed(placed), mode, input_size=(3, 16, 16))


def restored(change: Callable[[Tensor], Tensor]) -> object:
    _, rules = split_rules(tied().state_dict())
    return restore(Net(), {name: change(rule) for name, rule in rules.items()})


def odd_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 21 * 21, 3))


def sized(side: int, name: str) -> object:
    rows = [(Image.new("RGB", (16 + n * side, 16)), 0) for n in range(2)]
    data = [(np.asarray(image) if name == "arrays" else image, label) for image, label in rows]
    return from_dataset(data, preprocess=Preprocess((3, 16, 16)), num_classes=3)


def ambiguous(x: Tensor) -> object:
    return from_tensors(x, torch.zeros(2).long(), preprocess=Preprocess((3, 16, 3)), num_classes=3)


def none_flagged(count: int) -> Callable[[], object]:
    def flagged(images: Tensor, labels: Tensor) -> object:
        found = from_tensors(images, labels, preprocess=Preprocess((3, 16, 16)), num_classes=3)
        return found.subset(range(count))

    return audited(flagged)


def whole_numbers() -> nn.Module:
    network = Net()
    network.three.weight = nn.Parameter(network.three.weight.to(torch.int8), requires_grad=False)
    return network


def one_matrix(shared: bool) -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    if shared:
        network[2].weight = network[0].weight
    return network


def made_on(device: str | None) -> object:
    """A network on a device without values, which makes a tensor on the CPU, or where its input is."""

    class Makes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.ones(16, 16, device=device or x.device))

    adapter = Adapter(Makes().to("meta"), architecture="Makes", preprocess=Preprocess((3, 16, 16)))
    with adapter.blamed(2):
        return adapter.module(torch.zeros(2, 3, 16, 16, device="meta"))


def in_memory(rows: list[int]) -> object:
    """A subset of twelve images where there is room for four."""
    data = [(torch.zeros(3, 16, 16), 0)] * 12
    with mock.patch("memaudit.data.decode.MEMORY_BUDGET", 4 * 3 * 16 * 16 * 4):
        return from_dataset(Subset(data, rows), preprocess=Preprocess((3, 16, 16)), num_classes=3)  # type: ignore[arg-type]


def texts(content: str) -> object:
    """A table of texts, read."""
    with TemporaryDirectory() as folder:
        (path := Path(folder, "texts.csv")).write_text(content)
        return list_texts(path, Classes.of(("bad", "good"), 2), lambda texts: torch.zeros(len(texts), 2, 4))


WORDS = {
    "no adapter": "return cls(...)",
    "all in training mode": "call module.eval() last; a train() that is overridden must still reach every sub-module",
    "parameters in training": "call super().__init__(module, ...), or module.requires_grad_(False)",
    "three axes": "wrap the network in a module that returns the logits alone, one row per image",
    "other number of classes": "leave num_classes to the base class",
    "not finite": "give the example finite float32 weights",
    "changes a buffer": "statistics must not be updated in eval mode; keep caches out of buffers",
    "noise": "switch off dropout, noise and sampling in eval mode",
    "mixes the batch": "normalise and pool per image; look for batch statistics and for shapes that assume a "
    "batch size",
    "detached": "do not detach, convert to numpy or use torch.no_grad() in forward",
    "nothing to cut": "run convolutions and linear layers as modules of their own, or override sites",
    "a weight edit that leaves the bias": "check edits, axis and side of that site; sites of the base class are proved "
    "before they are used",
    "the wrong example": "check batch_axis and batch_minor of that site",
    "leaves hooks": "sites and forward must undo whatever they change, hooks included, also when they raise",
    "raises": "forward and sites must work on images of shape {}",
}
# Who said the size of images.
SAID = (("input_size", "flags"),)

FOLLOWED = [
    *(InCode(hint, broken(kind), kept) for kind, hint in WORDS.items()),
    InCode(
        "give its class a classmethod example() that returns a small loaded adapter; "
        "or call memaudit.testing.check_adapter(adapter) in its own tests",
        example_of(promises.Wordless),
        example_of(WithExample),
    ),
    InCode(
        "it must build and load a small network from nothing, without network access",
        example_of(promises.Crashing),
        example_of(WithExample),
    ),
    InCode(
        "Give tensors of examples (N, ...) and labels (N,), or a dataset of (example, label).",
        audited(lambda x, y: []),
        audited(plain),
    ),
    InCode(
        "what it makes or keeps must be where its input is (register_buffer, device=x.device); "
        "--device cpu does without",
        lambda: made_on("cpu"),
        lambda: made_on(None),
    ),
    InCode(
        "a text classifier's examples are a table with the columns text and label",
        lambda: texts("sentence,label\nfine,1\n"),
        lambda: texts("text,label\nfine,1\n"),
    ),
    InCode("one line per example: text,label", lambda: texts("text,label\n"), lambda: texts("text,label\nfine,1\n")),
    InCode(
        "give a torch.utils.data.Subset of at most {} of them",
        lambda: in_memory(list(range(12))),
        lambda: in_memory([0, 1, 2]),
    ),
    InCode("Give tensors (N, ...), one row an example.", audited(lambda x, y: (y.float(), y)), audited(plain)),
    InCode("Name at least one with --flagged.", none_flagged(0), none_flagged(2)),
    InCode(
        "if that is how it was trained: --input-size {}",
        lambda: settle_size([network(32)], reader(40), "cpu"),
        lambda: settle_size([network(32, Preprocess((3, 32, 32), origins=SAID))], reader(40), "cpu"),
    ),
    InCode(
        "let the dataset's transform end in one size, or give PIL images",
        lambda: sized(1, "arrays"),
        lambda: sized(1, "pictures"),
    ),
    InCode(
        "give floats, which are always NCHW: x.float() / 255",
        lambda: ambiguous(torch.zeros(2, 3, 16, 3, dtype=torch.uint8)),
        lambda: ambiguous(torch.zeros(2, 3, 16, 3, dtype=torch.uint8).float() / 255),
    ),
    InCode(
        "use 1 for the network's top-level modules",
        lambda: layer_groups(Net(), {}, depth=0),
        lambda: layer_groups(Net(), {}, depth=1),
    ),
    InCode(
        "Take it out with strip_tied_dropout.",
        lambda: add_tied_dropout(tied(), input_size=(3, 16, 16)),
        lambda: add_tied_dropout(strip_tied_dropout(tied(), "drop", input_size=(3, 16, 16)), input_size=(3, 16, 16)),
    ),
    InCode(
        "These can: {}",
        lambda: add_tied_dropout(Net(), "four", input_size=(3, 16, 16)),
        lambda: add_tied_dropout(Net(), "three", input_size=(3, 16, 16)),
    ),
    InCode(
        "Write: with memaudit.example_ids(ids): model(images). Or call model.eval() to test.",
        lambda: in_training(0),
        lambda: in_training(3),
    ),
    InCode(
        "Give one id per example; a layer that folds windows into the batch cannot be tied.",
        lambda: in_training(2),
        lambda: in_training(3),
    ),
    InCode(
        "Give it: input_size=(channels, height, width).",
        lambda: add_tied_dropout(odd_size(), "0"),
        lambda: add_tied_dropout(odd_size(), "0", input_size=(3, 21, 21)),
    ),
    InCode(
        "Save the state dict of the network that add_tied_dropout returned.",
        lambda: restored(lambda rule: -rule),
        lambda: restored(lambda rule: rule),
    ),
    InCode(
        "Place it directly behind one, or tie layers with add_tied_dropout.",
        lambda: stripped("softmax"),
        lambda: stripped("behind a linear layer"),
    ),
    InCode(
        "Mode drop, and dropout directly behind a convolution, norm or linear layer, always work.",
        lambda: stripped("gelu", "test"),
        lambda: stripped("gelu"),
    ),
    InCode("Check --num-classes and the class order.", audited(lambda x, y: (x, y + 3)), audited(plain)),
    InCode(
        "Edit the float checkpoint it was made from, then quantise the result.",
        lambda: check_editable(whole_numbers()),
        lambda: check_editable(Net()),
    ),
    InCode(
        "An edit of one would change the other; untie them and train, or audit without erasing.",
        lambda: check_editable(one_matrix(True)),
        lambda: check_editable(one_matrix(False)),
    ),
]
