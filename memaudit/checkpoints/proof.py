"""Is a report of this very checkpoint? Told by digests, without reading a tensor; pointers to it serve as well."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from memaudit.checkpoints.reader import fingerprint
from memaudit.checkpoints.source import opened
from memaudit.errors import ModelRejected
from memaudit.findings import ModelInfo
from memaudit.text import clean

MAX_POINTER = 1 << 16  # bytes; a .dvc file of one output has about 100


def prove(model: Path, audited: ModelInfo, edited: str = "") -> str:
    """In a few words, by what `model` was found to be the `audited` checkpoint, or the edited copy of it.

    Args:
        model: the checkpoint, its Git-LFS pointer, a directory that holds one of them, or its `.dvc` file.
        edited: SHA-256 of the copy that the report says was made.

    Raises:
        ModelRejected: it is another checkpoint, no checkpoint, or the report cannot tell.
    """
    kind, wanted, found = "sha256", audited.sha256, ""
    if model.suffix == ".dvc":
        kind, wanted, found = "md5", audited.md5, _dvc_digest(model)
    else:
        found = fingerprint(model)
    if not wanted:
        raise ModelRejected(
            f"the report holds no {kind} of {clean(audited.path)}, so it cannot be compared with {clean(model.name)}",
            hint="give the checkpoint itself; a report of a model in memory, or of several shards, has no md5",
        )
    if found == edited:
        return f"its edited copy, sha256 {found[:12]}; what is judged here was measured before the edit"
    if found != wanted:
        raise ModelRejected(
            f"the report is of another model: {clean(audited.path)} had {kind} {clean(wanted)}, "
            f"{clean(model.name)} has {found}",
            hint="audit this checkpoint, or check the report that belongs to it",
        )
    return f"{kind} {found[:12]}"


def _dvc_digest(path: Path) -> str:
    """The md5 in a `.dvc` file of one output.

    Raises:
        ModelRejected: it is none, or is of a directory or of several files.
    """
    with opened(path) as source:
        raw = source.read(0, MAX_POINTER + 1)
    try:
        if len(raw) > MAX_POINTER:
            raise ValueError("too large")
        # Every scalar as text: 32 digits are an md5 too, and no number. This loader makes nothing but plain data.
        outputs = yaml.load(raw, Loader=yaml.BaseLoader)["outs"]  # noqa: S506
        digest = str(outputs[0]["md5"])
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise ModelRejected(f"{clean(path.name)} is no .dvc file with an md5", hint="give the checkpoint") from None
    if len(outputs) != 1 or not re.fullmatch(r"[0-9a-f]{32}", digest):
        raise ModelRejected(
            f"{clean(path.name)} stands for a directory or for several files, not for one checkpoint",
            hint="fetch it with dvc pull and give the checkpoint",
        )
    return digest
