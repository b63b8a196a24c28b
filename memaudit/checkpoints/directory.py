"""Which files of a directory are the checkpoint, and what its `config.json` says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from memaudit.checkpoints.facts import from_config, from_preprocessor, from_training
from memaudit.checkpoints.header import MAX_NAME, check_name
from memaudit.checkpoints.recognise import MERGE, ZERO
from memaudit.checkpoints.run import NAME as ARGS
from memaudit.checkpoints.run import arguments
from memaudit.checkpoints.sniff import is_checkpoint_name
from memaudit.checkpoints.source import Source, opened
from memaudit.checkpoints.types import Facts
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean

# In order of preference: the safe format first, one file before many.
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
CONFIG = "config.json"  # speaks of the weights of these names beside it, whether they or their folder are named
PROCESSOR = "preprocessor_config.json"  # how the images were prepared, as transformers saves it
RUN = ("model_best.pth.tar", "last.pth.tar")  # timm's training script writes these beside args.yaml
LAST = "last.ckpt"  # Lightning's copy of the newest
STEP_FOLDER = re.compile(r"checkpoint-(\d{1,12})")  # Hugging Face's Trainer
LIGHTNING = re.compile(r"epoch=(\d{1,12})-step=(\d{1,12})\.ckpt")  # Lightning's default name
MAX_INDEX = 16 << 20
MAX_SHARDS = 512


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint's bytes are.

    Attributes:
        path: the file that stands for it: the weights, or the index of the shards.
        shards: the files to read, in order; `path` itself where there is only one.
        names: which tensors each shard must hold, by shard name; empty without an index.
        facts: from `config.json`; empty without one.
        run: from the `args.yaml` of the timm run that the file lies in, which says what the checkpoint may leave out.
    """

    path: Path
    shards: tuple[Path, ...]
    names: dict[str, frozenset[str]]
    facts: Facts
    run: Facts = field(default_factory=Facts)


def lay_out(path: Path) -> Layout:
    """What there is to read under `path`, a file or a directory.

    Raises:
        ModelRejected: no checkpoint in it, adapters only, one process's shards, or an unsound index.
        UsageError: several checkpoints and nothing that says which.
    """
    weights = path
    if path.is_dir():
        path = _innermost(path)
        weights = _weights(path)
    facts = _facts(weights, path.is_dir())
    if weights.name.endswith(".json"):
        return _indexed(weights, facts)
    return Layout(weights, (weights,), {}, facts, _run(weights.parent))


def _run(folder: Path) -> Facts:
    """What the training run whose folder this is says of the model; nothing where it is no timm run, or unreadable."""
    try:
        return from_training({"args": arguments(folder / ARGS)}, ARGS) if (folder / ARGS).is_file() else Facts()
    except ModelRejected:
        return Facts()


def _facts(weights: Path, whole: bool) -> Facts:
    """What the configurations beside the weights say; nothing without one.

    Args:
        whole: the folder was named, not the file.
    """
    config, processor = weights.parent / CONFIG, weights.parent / PROCESSOR
    facts, preprocess = Facts(), dict[str, object]()
    if (whole or weights.name in WEIGHTS) and config.exists():
        with opened(config) as source:
            facts = from_config(source)
    # A file of another name is meant where none of the usual ones is there.
    meant = whole or weights.name in WEIGHTS or not any((weights.parent / name).exists() for name in WEIGHTS)
    if meant and processor.exists():
        with opened(processor) as source:
            preprocess = from_preprocessor(source)
    return replace(facts, preprocess={**preprocess, **facts.preprocess})


def _innermost(folder: Path) -> Path:
    """The folder with the weights: of a run that holds `checkpoint-N/` or `checkpoints/` and no weights, the newest."""
    if any(is_checkpoint_name(p) or p.name in WEIGHTS for p in folder.iterdir()):
        return folder
    steps = {int(m[1]): p for p in folder.iterdir() if (m := STEP_FOLDER.fullmatch(p.name)) and p.is_dir()}
    if steps:
        return steps[max(steps)]
    inner = folder / "checkpoints"
    return inner if inner.is_dir() else folder


def _newest(found: list[Path]) -> Path | None:
    """The `last.ckpt` of a Lightning series, else the highest epoch and step in Lightning's own names."""
    last = [p for p in found if p.name == LAST]
    named = {(int(m[1]), int(m[2])): p for p in found if (m := LIGHTNING.fullmatch(p.name))}
    if last:
        return last[0]
    return named[max(named)] if named and len(named) == len(found) else None


def _weights(folder: Path) -> Path:
    """The file in `folder` that is, or lists, the weights; a timm run gives its best checkpoint, else its last."""
    present = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    wanted = WEIGHTS + (RUN if (folder / ARGS).exists() else ())
    for name in wanted:
        if (folder / name).exists():
            return folder / name
    if (folder / "adapter_config.json").exists():
        raise ModelRejected(
            f"{clean(folder)} holds only LoRA adapters (adapter_config.json)",
            hint=MERGE,
        )
    if parts := [d for d in (folder, *present) if d.is_dir() and any(d.glob("*.distcp"))]:
        raise ModelRejected(
            f"{clean(folder)} holds a distributed checkpoint (.distcp)",
            hint="gather it first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{clean(parts[-1])} model.pt",
        )
    parted = any(p.name.startswith("zero_pp_rank_") and p.name.endswith("_model_states.pt") for p in present)
    if parted or (folder / "zero_to_fp32.py").exists():
        whole = folder.absolute().parent if parted else folder
        raise ModelRejected(
            f"{clean(folder)} holds a DeepSpeed checkpoint in parts", hint=ZERO.replace("FOLDER", clean(whole))
        )
    found = [p for p in present if is_checkpoint_name(p) and p.is_file()]
    if not found:
        raise ModelRejected(
            f"{clean(folder)} holds no checkpoint", hint=f"expected one of {', '.join(WEIGHTS)}, or name the file"
        )
    if newest := _newest(found):
        return newest
    if len({p.stat().st_ino for p in found}) > 1:
        raise UsageError(
            f"{clean(folder)} holds {len(found)} checkpoints",
            hint="name one of them",
            details=[clean(p.name) for p in found],
        )
    return found[0]


def _indexed(path: Path, facts: Facts) -> Layout:
    """The layout an index file (`weight_map`: tensor name -> shard) describes."""
    with opened(path) as source:
        table = _weight_map(source)
    names: dict[str, set[str]] = {}
    for tensor, shard in table.items():
        names.setdefault(shard, set()).add(tensor)
    if len(names) > MAX_SHARDS:
        raise ModelRejected(f"{clean(path.name)} names {len(names):,} shards", hint="fetch it again")
    shards = tuple(path.parent / name for name in sorted(names))
    return Layout(path, shards, {shard: frozenset(tensors) for shard, tensors in names.items()}, facts)


def _weight_map(source: Source) -> dict[str, str]:
    """Tensor name to shard name, every one of them checked: a shard is a bare file name, so no path leads out."""
    try:
        if source.size > MAX_INDEX:
            raise ValueError(f"{source.size:,} bytes")
        table = json.loads(source.read(0, source.size))["weight_map"]
        if not isinstance(table, dict) or not table:
            raise ValueError("no weight_map")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelRejected(
            f"{source.name} is not a sound index of shards: {clean(error)}", hint="fetch it again"
        ) from error
    for tensor, shard in table.items():
        check_name(tensor, source.name)
        if not _bare(shard):
            raise ModelRejected(
                f"{source.name} names the shard {clean(shard)!r}, which is no bare name of a checkpoint file beside it",
                hint="do not trust this checkpoint",
            )
    return table


def _bare(shard: object) -> bool:
    """Whether `shard` is a plain checkpoint file name on any system: no separator, drive, NUL or leading dot."""
    if not isinstance(shard, str) or len(shard) > MAX_NAME or not is_checkpoint_name(Path(shard)):
        return False
    return not set(shard) & set("/\\:\0") and not shard.startswith(".")
