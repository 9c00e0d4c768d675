"""What a model may be called. A module of its own because `status` needs it and must not import any cryptography."""

from __future__ import annotations

import re
from typing import Final

from edgeseal.errors import FormatError

# Safe as a path component, as a TUF path pattern (no wildcards) and in a URL without quoting. Lower case only: two
# names that differ in case alone would meet in one directory on a workstation's file system.
MODEL_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
# A publisher's delegated TUF role may be named after its model; these four names mean something else there.
RESERVED_NAMES: Final = frozenset({"root", "targets", "snapshot", "timestamp"})


def is_model_name(name: str) -> bool:
    """Whether `name` can be a model's name: MODEL_NAME's grammar and not a TUF role."""
    return MODEL_NAME.fullmatch(name) is not None and name not in RESERVED_NAMES


def check_model_name(name: str) -> str:
    """Return `name` if it can be a model's name.

    Raises FormatError.
    """
    if not is_model_name(name):
        raise FormatError(
            f"model name {name[:80]!r} is not allowed",
            hint="1 to 64 of a-z 0-9 . _ -, a letter or digit at both ends; not root, targets, snapshot, timestamp",
        )
    return name
