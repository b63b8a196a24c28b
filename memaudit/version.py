"""The version of memaudit that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("memaudit")
except PackageNotFoundError:  # a source tree on the import path
    __version__ = "not installed"
