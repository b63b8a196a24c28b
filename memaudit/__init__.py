"""memaudit: what did this model memorize, where does it sit, and can you take it out?

Public names are loaded when they are first used, so `import memaudit` never loads torch.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    # `python -m memaudit` looks for modules in the current directory first, and what is audited may lie there: nothing
    # in it is ever imported. The installed command does not look there.
    del sys.path[0]

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memaudit.adapters.base import Adapter
    from memaudit.data.examples import ExampleSet
    from memaudit.errors import MemauditError
    from memaudit.findings import Finding
    from memaudit.network.tied_dropout import ExampleTiedDropout, add_tied_dropout, example_ids, strip_tied_dropout
    from memaudit.pipeline.discover import discover
    from memaudit.pipeline.library import audit
    from memaudit.pipeline.verify import verify
    from memaudit.report.document import Report
    from memaudit.settings import Settings
    from memaudit.version import __version__

__all__ = [
    "Adapter",
    "ExampleSet",
    "ExampleTiedDropout",
    "Finding",
    "MemauditError",
    "Report",
    "Settings",
    "__version__",
    "add_tied_dropout",
    "audit",
    "discover",
    "example_ids",
    "strip_tied_dropout",
    "verify",
]

_HOMES = {
    "Adapter": "memaudit.adapters.base",
    "ExampleSet": "memaudit.data.examples",
    "ExampleTiedDropout": "memaudit.network.tied_dropout",
    "Finding": "memaudit.findings",
    "MemauditError": "memaudit.errors",
    "Report": "memaudit.report.document",
    "Settings": "memaudit.settings",
    "__version__": "memaudit.version",
    "add_tied_dropout": "memaudit.network.tied_dropout",
    "audit": "memaudit.pipeline.library",
    "discover": "memaudit.pipeline.discover",
    "example_ids": "memaudit.network.tied_dropout",
    "strip_tied_dropout": "memaudit.network.tied_dropout",
    "verify": "memaudit.pipeline.verify",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'memaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
