"""What names and shapes were found to be, kept in the user's cache: a network is built to be compared only once.

An entry is found by the hash of the tensors' names, shapes and types, of the installed libraries' versions, and of this
package's own code: whatever could change the answer makes another entry. It holds names and plain values, and what it
names is built and compared with the checkpoint as any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import platformdirs
from torch import Tensor

from memaudit.adapters.building import LIBRARIES, installed_version
from memaudit.adapters.index import write_atomically
from memaudit.text import clean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def remembered(tensors: Mapping[str, Tensor], kind: Callable[..., T], find: Callable[[], Sequence[T]]) -> Sequence[T]:
    """What `find` gives for `tensors`, from the cache where it was found before.

    Args:
        kind: the dataclass of plain values that `find` gives, some or none of them.
    """
    described = sorted((name, list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items())
    key = hashlib.sha256(json.dumps([_versions(), described]).encode("utf-8", "surrogatepass")).hexdigest()
    file = Path(platformdirs.user_cache_dir("memaudit")) / "identified" / f"{key[:40]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return [
            kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in one.items()})
            for one in json.loads(file.read_text("utf-8"))
        ]
    found = find()
    with contextlib.suppress(OSError, TypeError, ValueError):  # no cache means looking again next time
        write_atomically(file, json.dumps([asdict(one) for one in found]).encode())
    return found


@cache
def _versions() -> list[str]:
    """The versions of the libraries, and the hash of the code that identifies."""
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
    return [*(f"{library} {clean(installed_version(library))}" for library in LIBRARIES), code]
