"""Hints about checkpoints, each followed."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memaudit.checkpoints.recognise import MERGE
from tests.hints.follow import INSPECT, Follow
from tests.real_inputs.harness import Ran
from tests.real_inputs.pictures import CODE

State = dict[str, Tensor]
AGAIN = "inspect", "m.pth", "--adapter", CODE, "--input-size", "3,16,16"
SAVE = "where the model was trained, save its weights alone: safetensors.torch.save_model(model, 'model.safetensors')"


def state(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def torch_file(change: Callable[[State], Any], **options: Any) -> Callable[[Path], tuple[str, ...]]:
    """`m.pth` holds what `change` makes of the weights."""

    def wrong(folder: Path) -> tuple[str, ...]:
        torch.save(change(state(folder)), folder / "m.pth", **options)
        return AGAIN

    return wrong


def safetensors(change: Callable[[State], State]) -> Callable[[Path], tuple[str, ...]]:
    """The safetensors file holds what `change` makes of the weights; the right ones stay beside it."""

    def wrong(folder: Path) -> tuple[str, ...]:
        shutil.copy(folder / "model.safetensors", folder / "kept.safetensors")
        save_file(change(state(folder)), folder / "model.safetensors")
        return INSPECT

    return wrong


def written(name: str, content: bytes | Callable[[Path], bytes]) -> Callable[[Path], tuple[str, ...]]:
    def wrong(folder: Path) -> tuple[str, ...]:
        (folder / name).write_bytes(content(folder) if callable(content) else content)
        return ("inspect", name, *AGAIN[2:])

    return wrong


def plain(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The weights alone, saved where they are at hand, under the name that was given."""
    torch.save(state(folder), folder / "m.pth")
    return AGAIN


def fetched(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The right file in the place of the wrong one."""
    source = folder / "kept.safetensors"
    shutil.copy(source if source.exists() else folder / "model.safetensors", folder / "again.safetensors")
    return ("inspect", "again.safetensors", *AGAIN[2:])


def weights(which: str) -> Callable[[Path, Ran], tuple[str, ...]]:
    return lambda folder, ran: (*AGAIN, *(("--weights", which) if which else ()))


def convert(folder: Path, ran: Ran) -> tuple[str, ...]:
    """The command of the hint, word for word; then its result is read."""
    from tests.real_inputs.harness import execute

    command = re.search(r"memaudit (convert --trust-pickle --sha256 \w{64} \S+ \S+);", ran.err)
    assert command, ran.err
    ended = execute(folder, tuple(shlex.split(command[1])))
    assert ended.code == 0, ended.err
    return ("inspect", "m.safetensors", *AGAIN[2:])


def series(folder: Path) -> tuple[str, ...]:
    return (*INSPECT, "--checkpoints", "nothing-*.pth")


def folder_of(*names: str) -> Callable[[Path], tuple[str, ...]]:
    def wrong(folder: Path) -> tuple[str, ...]:
        (folder / "run").mkdir()
        for number, name in enumerate(names):
            torch.save({n: t + number for n, t in state(folder).items()}, folder / "run" / name)
        return ("inspect", "run", *AGAIN[2:])

    return wrong


def sharded(folder: Path) -> tuple[str, ...]:
    tensors = state(folder)
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:3]}, folder / "a.safetensors")
    save_file({n: tensors[n] for n in names[3:]}, folder / "b.safetensors")
    table = {n: "a.safetensors" if n in names[:2] else "b.safetensors" for n in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return ("inspect", "model.safetensors.index.json", *AGAIN[2:])


def resharded(folder: Path, ran: Ran) -> None:
    tensors = state(folder)
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:2]}, folder / "a.safetensors")
    save_file({n: tensors[n] for n in names[2:]}, folder / "b.safetensors")


def named(*words: str) -> Callable[[Path, Ran], tuple[str, ...]]:
    return lambda folder, ran: words


def halved(s: State) -> dict[str, Any]:
    return {"model": s, "model_ema": {n: t * 0.5 for n, t in s.items()}}


TRUST = (
    "if you know who made it, and that the digest is theirs: memaudit convert --trust-pickle --sha256 {} {}; "
    "otherwise {}"
)
FOLLOWED = [
    Follow(TRUST, torch_file(lambda s: s, pickle_protocol=4), convert),
    Follow(TRUST, torch_file(lambda s: {"state_dict": s, "model_class": nn.Linear}), convert),
    Follow("choose the ones you deploy: --weights raw or --weights ema", torch_file(halved), weights("ema")),
    Follow("leave --weights out, or use --weights {}", lambda f: (*torch_file(lambda s: s)(f), "--weights", "ema"),
           weights("")),
    Follow("leave --weights out: it holds only one set", lambda f: (*INSPECT, "--weights", "ema"), named(*INSPECT)),
    Follow("save the one to audit in a file of its own", torch_file(lambda s: {"net_a": s, "net_b": dict(s)}), plain),
    Follow("two models were saved in one table; save the one to audit alone",
           torch_file(lambda s: s | {f"module.{n}": t for n, t in s.items()}), plain),
    Follow("give the checkpoint with the model's own state_dict",
           torch_file(lambda s: {"state": {}, "param_groups": [{"lr": 0.1}]}), plain),
    Follow("give the model's own checkpoint", torch_file(lambda s: {f"{n}.exp_avg": t for n, t in s.items()}), plain),
    Follow("where it was trained: ema.copy_to(model.parameters()), then save model.state_dict() alone",
           torch_file(lambda s: {"ema": {"shadow_params": list(s.values())}}), plain),
    Follow(MERGE,
           torch_file(lambda s: s | {"fc.lora_A.weight": torch.ones(2, 2)}), plain),
    Follow("audit the unquantised checkpoint it was made from", torch_file(lambda s: s | {"fc.qweight": torch.ones(2)}),
           plain),
    Follow("the architecture is another one; name it with --arch, or give a factory with --adapter file.py:name",
           torch_file(lambda s: {f"other{i}.x": t for i, t in enumerate(s.values())}), plain),
    Follow("save the network's own tensors alone, without these names",
           torch_file(lambda s: s | {"extra.bias": torch.ones(2)}), plain),
    Follow("build the network as training did in a factory: --adapter file.py:build; the names show what differs",
           torch_file(lambda s: {n.replace("two.bias", "deux.bias"): t for n, t in s.items()}), plain),
    Follow("check --arch, --num-classes, --input-size and --model-kwargs against how it was trained",
           torch_file(lambda s: s | {"head.bias": torch.ones(9)}), plain),
    Follow("converting them would change the model silently; save it in float32, float16 or bfloat16",
           torch_file(lambda s: s | {"head.bias": s["head.bias"].to(torch.int8)}), plain),
    Follow("training diverged or the file is damaged; audit an earlier checkpoint",
           torch_file(lambda s: s | {"head.bias": s["head.bias"] * torch.nan}), plain),
    Follow(SAVE, torch_file(lambda s: [s]), plain),
    Follow(SAVE, written("m.pth", pickle.dumps({"a": 1})), plain),
    Follow("rename it to end in {}; otherwise do not trust it",
           lambda f: written("m.pth", (f / "model.safetensors").read_bytes())(f), fetched),
    Follow("fetch or save it again", written("m.pth", b""), plain),
    Follow("fetch them with: git lfs pull", written("m.pth", b"version https://git-lfs.github.com/spec/v1\n"), plain),
    Follow("fetch them with: dvc pull", written("m.pth", b"outs:\n- md5: 0\n"), plain),
    Follow("the download failed or needed a login; fetch it again", written("m.pth", b"<!doctype html>"), plain),
    Follow("unpack it first", written("m.pth", b"\x1f\x8b\x08" + b"\0" * 30), plain),
    Follow("audit the checkpoint it was made from", written("m.pth", b"GGUF" + b"\0" * 30), plain),
    Follow("give a file that ends in {}; {}", written("m.pth", b"hello, this is no checkpoint"), plain),
    Follow("it is cut short or something else; fetch it again", written("m.safetensors", b"\xff" * 40), fetched),
    Follow("name a checkpoint file or a directory that holds one", lambda f: ("inspect", "nowhere.pth"),
           named(*INSPECT)),
    Follow("expected one of {}, or name the file",
           lambda f: ((f / "empty").mkdir(), ("inspect", "empty"))[1], named(*INSPECT)),
    Follow("name one of them", folder_of("a.pth", "b.pth"), lambda f, r: ("inspect", "run/a.pth", *AGAIN[2:])),
    Follow("its shards are from different checkpoints; fetch them again", sharded, resharded),
    Follow("check the path or the pattern", series, lambda f, r: (*INSPECT, "--checkpoints", "model.safetensors")),
    Follow("name the folder that holds them, a pattern such as 'run/epoch-*.pt', or the files",
           lambda f: ((f / "empty").mkdir(), (*INSPECT, "--checkpoints", "empty"))[1],
           lambda f, r: (*INSPECT, "--checkpoints", "model.safetensors")),
    Follow("remove it, or fetch it again", lambda f: ((f / "config.json").write_bytes(b" " * (9 << 20)), INSPECT)[1],
           lambda f, r: (f / "config.json").unlink()),
    Follow("fetch it again", lambda f: ((f / "config.json").write_text("{no"), INSPECT)[1],
           lambda f, r: (f / "config.json").unlink()),
    Follow("names are module paths such as layer1.0.conv1.weight; do not trust this file",
           torch_file(lambda s: s | {"a\x1b": torch.ones(1)}), plain),
]  # fmt: skip
