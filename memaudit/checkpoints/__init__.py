"""Checkpoints: what a file is, its plain tensors, and what it says about itself.

`read` is the way in; torch is loaded when tensors are read, not when this package is imported. One file per step:
`source` opens and hashes, `sniff` tells the format, `header` and `tensors` read safetensors, `archive`, `opcodes` and
`sandbox` take a pickle apart, `unwrap` and `prefixes` find the weights in it, `load` puts them into a module. `series`
finds the other checkpoints of the same run, `marks` tells when each was saved. `proof` compares a report with a file,
`run` reads what a timm run says of its data.
"""

from __future__ import annotations

from memaudit.checkpoints.proof import prove
from memaudit.checkpoints.reader import fingerprint, read
from memaudit.checkpoints.run import Run, find_run
from memaudit.checkpoints.series import Series, find_series
from memaudit.checkpoints.types import Checkpoint, Facts, Weights

__all__ = ["Checkpoint", "Facts", "Run", "Series", "Weights", "find_run", "find_series", "fingerprint", "prove", "read"]
