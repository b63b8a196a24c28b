"""memaudit for transformers: folders as `save_pretrained` and `Trainer` write them, audited and edited.

`folder` reads what was saved, `weights` puts tensors in and proves it, `images` measures the folder's image processor,
`saving` writes an edited copy.
"""

from __future__ import annotations

from memaudit_transformers.library import quiet as quiet  # isort: skip  - first: nothing may be fetched
from memaudit_transformers.adapter import TransformersAdapter

__all__ = ["TransformersAdapter"]
