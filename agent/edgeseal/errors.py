"""Every error edgeseal raises on purpose, grouped by who must act, and the exit code each one ends a command with.

Not here: library exceptions. Code that calls a library turns what it expects into one of these and lets the rest pass.

    EdgesealError               1  something went wrong here
    ├── UsageError              2  the person who typed the command or wrote the configuration
    ├── RefusedError            3  whoever made the bytes: verification failed, nothing was accepted
    │   ├── FormatError            the bytes are not what the format allows
    │   ├── IntegrityError         a hash, tag, signature or commitment does not match
    │   └── RollbackError          correctly signed, but older than what this device has accepted
    ├── NotAuthorisedError      4  the operator: this device, key or token is not entitled
    ├── TemporaryError          5  nobody: try again later (network, lock, disk full)
    │   ├── NoSpaceError           free some space first
    │   └── EntropyError        7  attach the source of randomness that policy demands
    └── IncompatibleError       6  an update of edgeseal, or another device: the bytes are good but not for here
"""

from __future__ import annotations

from typing import ClassVar


class EdgesealError(Exception):
    """An error with a message for a person: what was expected, what came, and (hint) what to do next.

    Secrets never appear in either text.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep message and hint apart so that each front end lays them out itself."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and hint in one line, for logs."""
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def as_dict(self) -> dict[str, object]:
        """Shape of the `--json` error object every command prints."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class UsageError(EdgesealError):
    """The command line, a configuration file or an argument is wrong."""

    exit_code = 2


class RefusedError(EdgesealError):
    """Verification refused the input; nothing of it was accepted."""

    exit_code = 3


class FormatError(RefusedError):
    """Bytes that the format does not allow: truncated, non-canonical, out of bounds."""


class IntegrityError(RefusedError):
    """A hash, authentication tag, signature or commitment does not match."""


class RollbackError(RefusedError):
    """Authentic, but older than a state this device has already accepted."""


class NotAuthorisedError(EdgesealError):
    """A device, key or token is unknown, revoked or lacks the scope."""

    exit_code = 4


class TemporaryError(EdgesealError):
    """Worth trying again later without changing anything."""

    exit_code = 5


class NoSpaceError(TemporaryError):
    """Not enough free disk or memory; names how much is needed and how much is there."""


class EntropyError(TemporaryError):
    """The randomness that policy demands is not to be had; nothing was made. A code of its own: scripts wait for it."""

    exit_code = 7


class IncompatibleError(EdgesealError):
    """Good bytes that this version or this device cannot use."""

    exit_code = 6
