"""An edited copy as `save_pretrained` writes it: the names of the original file, the folder whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from safetensors.torch import save as encode
from torch import Tensor

from memaudit.system.files import replace_with
from memaudit_transformers import weights
from memaudit_transformers.library import quiet

if TYPE_CHECKING:
    from memaudit_transformers.adapter import TransformersAdapter

# What a folder holds beside settings and weights, and what prediction needs.
KEPT = (
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip


def save(adapter: TransformersAdapter, state: Mapping[str, Tensor], target: Path) -> None:
    """Write `state` to `target`: a folder that `from_pretrained` loads, or one `.safetensors` file.

    Args:
        target: a folder does not exist yet, or is empty.
    """
    plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if target.suffix == ".safetensors":
        named = weights.named_by_file(adapter.module, plain)
        data = encode({n: t.contiguous().clone() for n, t in named.items()}, {"format": "pt"})
        replace_with(target, lambda file: file.write(data))
        return
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as scratch:
        made = Path(scratch) / target.name
        with quiet():
            adapter.module.save_pretrained(made, state_dict=plain)
        for name in KEPT:
            source = adapter.saved.folder / name
            if source.is_file() and not (made / name).exists():
                shutil.copyfile(source, made / name)
        os.replace(made, target)
