"""`memaudit convert`: the one way to use a pickle that the safe reader refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from memaudit.cli import options as opt
from memaudit.cli.values import choice
from memaudit.errors import UsageError
from memaudit.text import clean


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint whose pickle is trusted.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where the weights go: a .safetensors file.")],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Let IN run the code it holds: you know who made it.")
    ] = False,
    sha256: Annotated[str, typer.Option(help="The SHA-256 its maker gives for IN, 64 hex digits.")] = "",
    weights: opt.Weights = None,
    import_from: Annotated[
        Path | None, typer.Option(help="Folder of the Python files whose classes the pickle names.")
    ] = None,
) -> None:
    """Open a pickle that you trust, in a limited process, and keep its plain weights.

    Opening a pickle can run any code. Nothing but the two options together makes memaudit do it, and only for the very
    bytes that they name.
    """
    if not trust_pickle or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(
            f"opening {clean(source)} can run any code that its maker put there",
            hint="If you know who made it, give both: --trust-pickle and --sha256 with the 64 hex digits they publish.",
        )
    if target.suffix.lower() != ".safetensors":
        raise UsageError(f"{clean(target)} does not end in .safetensors", hint="Name the file to write accordingly.")
    if source.suffix.lower() == ".safetensors":
        raise UsageError(f"{clean(source)} is named as safetensors: there is nothing to convert")
    choice(weights, ("raw", "ema"), "--weights")
    if import_from is not None and not import_from.is_dir():
        raise UsageError(f"--import-from {clean(import_from)} is no folder", hint="Name the folder of your .py files.")
    from memaudit.system.files import check_target, replace_with

    check_target(target)
    from memaudit.checkpoints.facts import as_metadata, from_training
    from memaudit.checkpoints.sandbox import open_trusted
    from memaudit.checkpoints.source import opened
    from memaudit.checkpoints.tensors import write_tensors

    with opened(source) as file:
        found = open_trusted(
            file, sha256.lower(), "ema" if weights == "ema" else "raw" if weights else None, import_from
        )
    facts = from_training(found.about)
    metadata = {"format": "pt", **as_metadata(facts), **({} if facts.epoch is None else {"epoch": str(facts.epoch)})}
    replace_with(target, lambda stream: write_tensors(found.tensors, metadata, stream))
    typer.echo(f"wrote {clean(target)}: {len(found.tensors)} tensors", err=True)
