"""One tree of errors; each knows the exit code the command line ends with."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a memaudit command says to the shell. Nothing but `POLICY` ever exits 1."""

    OK = 0  # complete, policy met
    POLICY = 1  # complete, policy not met
    USAGE = 2  # usage, configuration, or a resume with other inputs
    REJECTED = 3  # model or data rejected, a premise broken, or nothing to audit
    INCOMPLETE = 4  # unreadable examples, non-finite numbers, a limit reached
    ENVIRONMENT = 5  # disk full, out of memory at batch 1, lock held, no such device
    BUG = 70  # a bug in memaudit
    INTERRUPTED = 130
    TERMINATED = 143


class MemauditError(Exception):
    """Base of every error memaudit raises on purpose: one sentence of what is wrong, and what to do about it.

    Args:
        message: what was wrong and what was found, in one line.
        hint: what to do, in one line; printed after the message.
        details: further lines (rejected rows, candidate names); callers show the first 20.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, hint: str = "", details: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)


class UsageError(MemauditError):
    """A flag, a configuration value or an output path that cannot work."""

    exit_code = ExitCode.USAGE


class ModelRejected(MemauditError):
    """The checkpoint is unsafe, broken, or not the model it is said to be."""

    exit_code = ExitCode.REJECTED


class DataRejected(MemauditError):
    """The flagged or reference examples cannot be audited as given."""

    exit_code = ExitCode.REJECTED


class PremiseBroken(MemauditError):
    """A precondition of every figure in the report does not hold (eval mode, determinism, plausible accuracy...)."""

    exit_code = ExitCode.REJECTED


class AdapterFault(MemauditError):
    """An adapter does not keep a promise that every figure rests on; its author reads this."""

    exit_code = ExitCode.REJECTED


class Incomplete(MemauditError):
    """The audit could not see all of what it was given."""

    exit_code = ExitCode.INCOMPLETE


class EnvironmentFault(MemauditError):
    """The machine, not the input: disk, memory, lock, device."""

    exit_code = ExitCode.ENVIRONMENT


class BugError(MemauditError):
    """An invariant of memaudit, or of an adapter's promise to it, does not hold."""

    exit_code = ExitCode.BUG
