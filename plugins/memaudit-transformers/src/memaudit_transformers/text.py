"""Text classifiers: token ids and their mask as tensors, by the tokenizer in the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from memaudit.adapters.options import ModelOptions
from memaudit.data.images.preprocess import Preprocess
from memaudit.errors import ModelRejected, UsageError
from memaudit.text import clean
from memaudit_transformers.folder import Saved, read_json
from memaudit_transformers.library import quiet

MOST_TOKENS = 512  # where neither the tokenizer nor the network says fewer
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def prepare(saved: Saved, options: ModelOptions) -> Preprocess:
    """What the network is fed: ids and mask, of the arrays' length or up to what it takes.

    Raises:
        UsageError: an option that is for images.
    """
    if options.mean is not None or options.std is not None or options.input_size is not None:
        raise UsageError(
            "--mean, --std and --input-size are for images; this network reads text", hint="leave them out"
        )
    if options.arrays is not None and options.arrays.masked:
        return Preprocess(options.arrays.shape, tokens=True, masked=True, origin="arrays")
    return Preprocess((2, longest(saved)), tokens=True, masked=True, origin="tokenizer")


def longest(saved: Saved) -> int:
    """Tokens that a text is cut at: what tokenizer and network take, as in training."""
    raw = read_json(saved.folder / "tokenizer_config.json") or {}
    said = [raw.get("model_max_length"), getattr(saved.config, "max_position_embeddings", None)]
    return min([MOST_TOKENS, *(n for n in said if type(n) is int and n > 2)])


def encoder(saved: Saved) -> Callable[[Sequence[str]], Tensor]:
    """From texts to `(N, 2, T)` int64, padded to the longest of them.

    Raises:
        ModelRejected: there is no tokenizer in the folder, or it names code of its own.
    """
    tokenizer = _tokenizer(saved)
    most = longest(saved)

    def encode(texts: Sequence[str]) -> Tensor:
        with quiet():
            found = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        return torch.stack([found["input_ids"], found["attention_mask"]], 1)

    return encode


def _tokenizer(saved: Saved) -> Any:
    where = clean(saved.folder.name)
    if not any((saved.folder / name).is_file() for name in FILES):
        raise ModelRejected(
            f"{where} holds no tokenizer", hint="save it beside the network: tokenizer.save_pretrained(folder)"
        )
    if (read_json(saved.folder / "tokenizer_config.json") or {}).get("auto_map"):
        raise ModelRejected(
            f"the tokenizer in {where} names code of its own (auto_map), which is never run",
            hint="give token ids: arrays x and mask in an .npz",
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(saved.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelRejected(
            f"the tokenizer in {where} cannot be loaded: {type(error).__name__}: {clean(str(error), 300)}",
            hint="give token ids: arrays x and mask in an .npz",
        ) from error
    if tokenizer.pad_token is None:
        raise ModelRejected(
            f"the tokenizer in {where} has no padding token", hint="set tokenizer.pad_token and save it again"
        )
    return tokenizer
