"""What a file is to hold, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Pages of their own, by how their file's name begins.
NAMED: Mapping[str, tuple[str, ...]] = {"officer": (".html", ".md"), "model-card": (".md",)}


def format_of(path: Path) -> str:
    """What `path` is to hold: its suffix, but for `officer*.html`, `officer*.md` and `model-card*.md`."""
    name, suffix = path.name.lower(), path.suffix.lower()
    for begin, formats in NAMED.items():
        if name.startswith(begin) and suffix in formats:
            return f"{begin}{suffix}"
    return suffix
