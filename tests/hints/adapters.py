"""Hints about adapters and the user's own code, each followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import timm
import torch
from safetensors.torch import save_file

from tests.hints.follow import INSPECT, Follow
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import CODE, write_code

ARCH = ("inspect", "t.safetensors", "--input-size", "32")


def code(body: str) -> Callable[[Path], tuple[str, ...]]:
    def wrong(folder: Path) -> tuple[str, ...]:
        write_code(folder, body)
        return INSPECT

    return wrong


def mended(folder: Path, ran: Ran) -> None:
    write_code(folder)


def named(*words: str) -> Callable[[Path, Ran], tuple[str, ...]]:
    return lambda folder, ran: words


def resnet(*words: str, classes: int = 3) -> Callable[[Path], tuple[str, ...]]:
    def wrong(folder: Path) -> tuple[str, ...]:
        save_file(timm.create_model("test_resnet", num_classes=classes).state_dict(), folder / "t.safetensors")
        return (*ARCH, *words)

    return wrong


def changed(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], *words: str
) -> Callable[[Path], tuple[str, ...]]:
    def wrong(folder: Path) -> tuple[str, ...]:
        save_file(change(timm.create_model("test_resnet", num_classes=3).state_dict()), folder / "t.safetensors")
        return (*ARCH, *words)

    return wrong


def whole(folder: Path, ran: Ran) -> tuple[str, ...]:
    return resnet()(folder)


def in_a_factory(line: str) -> Callable[[Path, Ran], tuple[str, ...]]:
    """The network built as the hint says, in a factory of the user's."""

    def right(folder: Path, ran: Ran) -> tuple[str, ...]:
        build = "import timm, torch\n\n\ndef build():\n    net = timm.create_model('test_resnet', num_classes=3)\n"
        (folder / "factory.py").write_text(f"{build}    {line}\n    return net\n")
        return (*ARCH, "--adapter", "factory.py:build")

    return right


def vit(*words: str) -> Callable[[Path], tuple[str, ...]]:
    """A network whose position embedding is of images of 160 x 160."""

    def wrong(folder: Path) -> tuple[str, ...]:
        save_file(timm.create_model("test_vit", num_classes=3).state_dict(), folder / "t.safetensors")
        return ("inspect", "t.safetensors", "--arch", "test_vit", *words)

    return wrong


def resized(folder: Path) -> tuple[str, ...]:
    """A Vision Transformer whose depth, patch and width are the user's own."""
    network = timm.create_model("vit_small_patch16_224", num_classes=3, img_size=32, patch_size=8, depth=2)
    save_file(network.state_dict(), folder / "t.safetensors")
    return ("inspect", "t.safetensors")


def as_advised(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The options that the hint prints, word by word."""
    options = ran.err.split("other sizes: ")[1].split(" (the number")[0]
    return ("inspect", "t.safetensors", *options.split())


def rotary(*words: str) -> Callable[[Path], tuple[str, ...]]:
    """A network that keeps no position embedding: a table of it is made for whatever size is said."""

    def wrong(folder: Path) -> tuple[str, ...]:
        network = timm.create_model("vit_small_patch16_rope_224", num_classes=3, depth=1, embed_dim=48, num_heads=3)
        save_file(network.state_dict(), folder / "t.safetensors")
        small = ("depth=1", "embed_dim=48", "num_heads=3", *words)
        said = (word for one in small for word in ("--model-kwargs", one))
        return ("inspect", "t.safetensors", "--arch", "vit_small_patch16_rope_224", *said)

    return wrong


SIZE = ("inspect", "model.safetensors", "--adapter", CODE)
WRAP = "class Wrap(Net):\n    def forward(self, x):\n        return {}\n\nreturn Wrap()"
FOLLOWED = [
    Follow(
        "return the Python module that torch.jit.script or torch.jit.trace was given",
        code("return torch.jit.script(Net())"),
        mended,
    ),
    Follow(
        "return an nn.Module, or a pair of an nn.Module and a function on batches (N, C, H, W) in [0, 1]",
        code("return Net"),
        mended,
    ),
    Follow("build it on the CPU", code("with torch.device('meta'):\n    return Net()"), mended),
    Follow(
        "wrap it in a module whose forward returns the logits, or a dict that calls them 'logits'",
        code(WRAP.format("{'a': super().forward(x), 'b': x}")),
        mended,
    ),
    Follow(
        "wrap it in a module whose forward returns one row of logits an example",
        code(WRAP.format("super().forward(x).flatten()")),
        mended,
    ),
    Follow(
        "check --input-size, and that its forward takes batches of any size",
        lambda f: (*SIZE, "--input-size", "3,8,8"),
        named(*INSPECT),
    ),
    Follow(
        "in the factory, run it once on an image before returning it: its names then say what differs",
        code("net = Net()\nnet.more = nn.LazyLinear(3)\nreturn net"),
        mended,
    ),
    Follow(
        "keep them out of its state: register_buffer(name, value, persistent=False)",
        code("net = Net()\nnet.register_buffer('mean', torch.zeros(3))\nreturn net"),
        lambda f, r: code("net = Net()\nnet.register_buffer('mean', torch.zeros(3), persistent=False)\nreturn net")(f),
    ),
    Follow("fix it and run again", code("raise ValueError('x')"), mended),
    Follow(
        "install that package, or put its folder on PYTHONPATH: the current directory is not searched",
        code("import no_such_package"),
        mended,
    ),
    Follow(
        "write it as --adapter {}:NAME, a function without required arguments",
        lambda f: ("inspect", "model.safetensors", "--adapter", "network.py:biuld", "--input-size", "3,16,16"),
        named(*INSPECT),
    ),
    Follow(
        "for example ./my_model.py:build",
        lambda f: ("inspect", "model.safetensors", "--adapter", "network:build"),
        named(*INSPECT),
    ),
    Follow(
        "name a Python file: --adapter ./my_model.py:build",
        lambda f: ("inspect", "model.safetensors", "--adapter", "nowhere.py:build"),
        named(*INSPECT),
    ),
    Follow(
        "list them with: memaudit adapters list; or name a file: --adapter ./my_model.py:build",
        lambda f: (*SIZE[:2], "--adapter", "nobody"),
        named("adapters", "list"),
    ),
    Follow(
        "give it, for example: --input-size 3,224,224; or '(30)' where an input is a row of 30 numbers",
        lambda f: SIZE,
        lambda f, r: (*SIZE, "--input-size", "3,16,16"),
    ),
    Follow(
        "give one --mean and one --std value per channel",
        lambda f: (*INSPECT, "--mean", "0.5", "--std", "0.2,0.2,0.2"),
        named(*INSPECT, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"),
    ),
    Follow(
        "leave --std out, or give the training values",
        lambda f: (*INSPECT, "--mean", "0,0,0", "--std", "0,1,1"),
        named(*INSPECT),
    ),
    Follow(
        "leave the flags out, or return the module alone",
        lambda f: (*code("return Net(), lambda x: x")(f), "--mean", "0,0,0", "--std", "1,1,1"),
        named(*INSPECT),
    ),
    Follow(
        "give the exact name, as timm.list_models() prints it, or torchvision:NAME",
        resnet("--arch", "test_resnt"),
        named(*ARCH, "--arch", "test_resnet"),
    ),
    Follow(
        "if {} is right: --num-classes {}; else this is another model's checkpoint",
        resnet("--num-classes", "5"),
        named(*ARCH, "--num-classes", "3"),
    ),
    Follow("--input-size {},{},{}", resnet("--input-size", "1,32,32"), named(*ARCH[:2], "--input-size", "3,32,32")),
    Follow(
        "leave --input-size out: the tensors show the size",
        vit("--input-size", "3,64,64"),
        lambda folder, ran: vit()(folder),
    ),
    Follow(
        "check --model-kwargs against how it was trained",
        rotary("img_size=4096"),
        lambda folder, ran: rotary()(folder),
        always=lambda: mock.patch("memaudit.adapters.named.GROWTH_SLACK", 1 << 20),
    ),
    Follow(
        "check --model-kwargs and the checkpoint's own model_args",
        resnet("--arch", "test_resnet", "--model-kwargs", "no_such=3"),
        named(*ARCH),
    ),
    Follow(
        "they are a Vision Transformer's of other sizes: {} (the number of heads, which no tensor shows, as trained)",
        resized,
        as_advised,
    ),
    Follow(
        "name it with --arch, or give a factory with --adapter file.py:name; plugins: memaudit adapters list",
        changed(lambda s: {f"x.{n}" if "fc" in n else n: t for n, t in s.items()}),
        lambda f, r: (*resnet()(f), "--arch", "test_resnet"),
    ),
    Follow(
        "memorization of labels needs the layer that predicts them; give the checkpoint that has it",
        changed(lambda s: {n: t for n, t in s.items() if not n.startswith("fc.")}),
        whole,
    ),
    Follow(
        "where it was trained, save model.state_dict(): model.parameters() leaves the statistics out",
        changed(lambda s: {n: t for n, t in s.items() if "running" not in n}, "--arch", "test_resnet"),
        whole,
    ),
    Follow(
        "{}: net.{} = {}",
        changed(lambda s: {n.replace("fc.", "fc.1."): t for n, t in s.items()}, "--arch", "test_resnet"),
        in_a_factory("net.fc = torch.nn.Sequential(torch.nn.Dropout(), net.fc)"),
    ),
]
