"""Steps at which tests stop this process, or fill its disk: what must survive is tried where it could break.

`_MEMAUDIT_FAILPOINT=name`, `name:3` (the third time it is passed) or `name:3:full` (as if the disk were full there).
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "_MEMAUDIT_FAILPOINT"  # not among the names that stand for options
# In the order a scan passes them.
POINTS = (
    *("journal.create", "journal.header", "journal.half", "journal.line", "journal.state"),
    *("publish.start", "publish.half", "publish.staged", "publish.renamed", "publish.done", "journal.removed"),
)
_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End this process by SIGKILL, or raise `OSError` (no space left), if the environment names this step."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _, rest = wanted.partition(":")
    count, _, action = rest.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] != int(count or 1):
        return
    if action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.SIGKILL)
