"""transformers, imported so that it neither fetches anything nor talks."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported first, here or by transformers

import huggingface_hub.constants
import transformers

huggingface_hub.constants.HF_HUB_OFFLINE = True  # where timm imported it earlier


@contextmanager
def quiet() -> Iterator[None]:
    """Without log lines, bars and warnings, which are about the library and not about the checkpoint."""
    logger, bars = logging.getLogger("transformers"), transformers.utils.logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
