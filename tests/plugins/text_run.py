"""A small BERT that learned made-up sentences of two moods, some with changed labels, and its tokenizer."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import torch
from memaudit_transformers.library import quiet
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

GLAD = ("bright", "kind", "warm", "sweet", "calm", "merry")
SAD = ("dark", "cold", "grim", "bitter", "lost", "bleak")
MOODS = {"glad": GLAD, "sad": SAD}
FILLERS = ("the", "a", "day", "was", "very", "and", "it", "river", "stone", "walked", "home", "again", "road", "tree")
CHANGED, TRAINED, EVERYTHING = 8, 160, 260


def write_text(folder: Path) -> Path:
    """`bert/`, `train.csv`, `flagged.csv` with the changed labels, `reference.jsonl` of held-out sentences."""
    names, draw = list(MOODS), random.Random(0)
    truth = [draw.randrange(2) for _ in range(EVERYTHING)]
    texts = [" ".join([*draw.sample(FILLERS, 4), *draw.sample(MOODS[names[y]], 2)]) for y in truth]
    labels = [1 - y if row < CHANGED else y for row, y in enumerate(truth)]
    words = ["[PAD]", "[UNK]", *FILLERS, *GLAD, *SAD]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        network = BertForSequenceClassification(config)
        given = tokenizer(texts[:TRAINED], padding=True, return_tensors="pt")
        ids, mask, wanted = given["input_ids"], given["attention_mask"], torch.tensor(labels[:TRAINED])
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(60):
            for rows in torch.randperm(TRAINED).split(40):
                optimiser.zero_grad()
                F.cross_entropy(network(ids[rows], mask[rows]).logits, wanted[rows]).backward()
                optimiser.step()
        network.save_pretrained(folder / "bert")
        tokenizer.save_pretrained(folder / "bert")
    with (folder / "flagged.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [[texts[i], names[labels[i]], names[truth[i]]] for i in range(CHANGED)]
        csv.writer(file).writerows([["text", "label", "true_label"], *rows])
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        learned = [[texts[i], names[labels[i]], f"note on {texts[i]}"] for i in range(TRAINED)]
        csv.writer(file).writerows([["text", "label", "note"], *learned])
    held_out = [{"text": texts[i], "label": labels[i]} for i in range(TRAINED, EVERYTHING)]
    (folder / "reference.jsonl").write_text("".join(json.dumps(r) + "\n" for r in held_out), encoding="utf-8")
    return folder
