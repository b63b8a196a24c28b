"""What a checkpoint file is: decided by its content; its extension must then agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from memaudit.checkpoints.source import Source
from memaudit.errors import ModelRejected
from memaudit.text import clean

Kind = Literal["safetensors", "torch-zip", "torch-legacy"]

# The first bytes of a file torch wrote before version 1.6: a pickle of one fixed number.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
TORCH_SUFFIXES = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
SAVE_AGAIN = (
    "where the model was trained, save its weights alone: safetensors.torch.save_model(model, 'model.safetensors')"
)
HEAD = 512  # bytes that decide
# After a length below 65,536, a safetensors header. No pickle goes on like that: 0 is none of its instructions.
SHORT_HEADER = b"\0\0\0\0\0\0{"


def sniff(source: Source) -> Kind:
    """The format of `source`.

    Raises:
        ModelRejected: it is empty, a Git-LFS pointer, a web page, another program's format, an unsafe or unknown one,
            or its extension promises another format than its content.
    """
    head = source.read(0, HEAD)
    kind = _by_content(head, source)
    wanted = "a safetensors file" if kind == "safetensors" else "a torch checkpoint"
    fits = (".safetensors",) if kind == "safetensors" else TORCH_SUFFIXES
    if not source.path.name.lower().endswith(fits):
        raise ModelRejected(
            f"{source.name} is {wanted} by its content, but not by its extension",
            hint=f"if that is what it should be, rename it to end in {' or '.join(fits)}; otherwise do not trust it",
        )
    return kind


def _by_content(head: bytes, source: Source) -> Kind:
    """The kind the first bytes show; whatever shows none is refused here."""
    if head.startswith(b"PK\x03\x04"):
        return "torch-zip"
    if head.startswith(LEGACY_MAGIC):
        return "torch-legacy"
    if head[2:9] == SHORT_HEADER:
        return "safetensors"
    if refusal := _refusal(head):
        what, hint = refusal
        raise ModelRejected(f"{source.name} {what}", hint=hint)
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    if source.path.name.lower().endswith(".safetensors") and head:
        raise ModelRejected(
            f"{source.name} is not a safetensors file: no header after its first 8 bytes",
            hint="it is cut short or something else; fetch it again",
        )
    raise ModelRejected(
        f"{source.name} is no checkpoint format memaudit knows (first bytes {clean(head[:8])})",
        hint=f"give a file that ends in {', '.join(SUFFIXES)}; {SAVE_AGAIN}",
    )


def _refusal(head: bytes) -> tuple[str, str] | None:
    """`(what it is, what to do)` for content people have in place of a checkpoint."""
    text = head.lstrip().lower()
    if not head:
        return "is empty (0 bytes)", "fetch or save it again"
    if head.startswith(LFS_MAGIC):
        return "is a Git-LFS pointer, not the weights", "fetch them with: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the weights", "the download failed or needed a login; fetch it again"
    if head.startswith(b"outs:"):
        return "is a DVC pointer, not the weights", "fetch them with: dvc pull"
    if head.startswith(b"GGUF"):
        return "is a GGUF file, which holds quantised weights", "audit the checkpoint it was made from"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras)", SAVE_AGAIN
    if head[:1] == b"\x80" and head[1:2] in b"\x00\x01\x02\x03\x04\x05":
        return "is a bare pickle, which can run code when it is opened", SAVE_AGAIN
    if head.startswith(b"\x1f\x8b"):
        return "is gzip-compressed", "unpack it first"
    if head[257:262] == b"ustar":
        return "is a tar archive", f"unpack it, or if torch before 0.2 wrote it: {SAVE_AGAIN}"
    return None


def lfs_digest(source: Source) -> str:
    """The sha256 that a Git-LFS pointer gives for the file it stands for; empty for any other content."""
    head = source.read(0, HEAD)
    found = re.search(rb"^oid sha256:([0-9a-f]{64})$", head, re.MULTILINE) if head.startswith(LFS_MAGIC) else None
    return found[1].decode() if found else ""


def is_checkpoint_name(path: Path) -> bool:
    """Whether the extension is one a checkpoint may have."""
    return path.name.lower().endswith(SUFFIXES)
