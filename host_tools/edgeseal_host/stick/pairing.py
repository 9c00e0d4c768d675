"""The pairing secrets of sticks, in the file the agent reads as `entropy.stick_keys`: TOML, `"serial" = "key in hex"`.

One secret per stick, drawn here when it is flashed. It authenticates frames against swapped and replayed sticks; it is
no key to anything else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeseal.durable import locked, write_atomic
from edgeseal.entropy.attach import keys
from edgeseal.stick.mac import KEY_LENGTH

if TYPE_CHECKING:
    from pathlib import Path


def secret_for(path: Path, serial: str) -> tuple[bytes, bool]:
    """Return the secret of `serial` and whether it is new: drawn, and in the file (mode 0600) before it is returned.

    A stick that is flashed again keeps its secret, so the devices that know it go on knowing it. Raises UsageError for
    a file that others can read or that is not such a list.
    """
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        known = dict(keys(path)) if path.exists() else {}
        if serial in known:
            return known[serial], False
        known[serial] = os.urandom(KEY_LENGTH)
        lines = [f'"{name}" = "{key.hex()}"\n' for name, key in sorted(known.items())]
        write_atomic(path, "".join(lines).encode())
        return known[serial], True
