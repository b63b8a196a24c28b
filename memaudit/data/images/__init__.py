"""One image file to the network's input size, by written rules, in processes that a hostile file may bring down.

No torch here: the worker processes import this package and start in a moment.
"""

from __future__ import annotations


class Unreadable(Exception):
    """This image cannot be decoded; the audit goes on without it and is incomplete."""


class RowError(ValueError):
    """Why one row cannot be audited; the reader that catches it knows the line."""
