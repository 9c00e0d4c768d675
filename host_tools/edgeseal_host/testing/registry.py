"""An in-memory device registry behind the real interface of `edgeseal.session.server`.

Serializable by a lock, rolled back by a snapshot; nothing is durable. `snapshot` and `restore` stand for a backup.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgeseal.session.server import Row
from edgeseal.suite import PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class DeviceRow:
    """Counters and generations (by key id) of one device."""

    ctr: int = 0
    tag: bytes = b""
    revoked: bool = False
    alarms: int = 0
    generations: dict[bytes, Row] = field(default_factory=dict)


class MemoryRegistry:
    """Registry and transaction in one: the lock makes every transaction the only one."""

    def __init__(self) -> None:
        """Start without devices."""
        self.devices: dict[str, DeviceRow] = {}
        self._lock = threading.RLock()

    def enrol(self, device: str, public: PublicKey, psk: bytes, *, needs_qkd: bool = False) -> None:
        """Add a device with its first generation.

        Raises ValueError for a public key known for any device: the cheapest detector of a dead RNG.
        """
        if self.find(public.kid) is not None:
            raise ValueError("public key is already enrolled")
        row = Row(device, public.kid, public.suite.number, public.raw, psk, pending=False, needs_qkd=needs_qkd)
        self.devices[device] = DeviceRow(generations={public.kid: row})

    def find(self, kid_d: bytes) -> Row | None:
        """Return the generation with that key id."""
        return next((d.generations[kid_d] for d in self.devices.values() if kid_d in d.generations), None)

    @contextmanager
    def transaction(self) -> Iterator[MemoryRegistry]:
        """Hold the lock; restore everything if the block raises."""
        with self._lock:
            before = self.snapshot()
            try:
                yield self
            except BaseException:
                self.restore(before)
                raise

    def snapshot(self) -> dict[str, DeviceRow]:
        """Return a backup."""
        return {
            name: replace(device) for name, device in self.devices.items()
        }  # rows and mappings are never changed in place

    def restore(self, backup: dict[str, DeviceRow]) -> None:
        """Go back to a backup, as it was."""
        self.devices = {name: replace(device) for name, device in backup.items()}

    def after_restore(self) -> None:
        """Apply the restore rule of docs/spec/session.md §16."""
        for device in self.devices.values():
            device.ctr += 65_536
            device.tag = b""

    def revoked(self, row: Row) -> bool:
        """Whether the device is revoked."""
        return self.devices[row.device].revoked

    def advance(self, row: Row, *, ctr: int, tag: bytes, lowest: int, resynced: bool) -> bool:
        """Conditional update of counter and tag."""
        device = self.devices[row.device]
        if device.revoked or row.kid not in device.generations or not lowest <= device.ctr < ctr:
            return False
        device.ctr, device.tag = ctr, tag
        device.alarms += resynced
        return True

    def counter(self, row: Row) -> tuple[int, bytes]:
        """Return stored counter and tag."""
        device = self.devices[row.device]
        return device.ctr, device.tag

    def promote(self, row: Row) -> None:
        """Make a pending generation the only one."""
        self.devices[row.device].generations = {row.kid: replace(row, pending=False)}

    def add_pending(self, row: Row, *, suite: int, public: bytes, psk: bytes) -> bool:
        """Store a pending generation, replacing this device's earlier pending one."""
        kid = PublicKey(suite, public).kid
        known = self.find(kid)
        if known is not None and not (known.pending and known.device == row.device):
            return False
        device = self.devices[row.device]
        kept = {k: g for k, g in device.generations.items() if not g.pending}
        kept[kid] = Row(row.device, kid, suite, public, psk, pending=True, needs_qkd=row.needs_qkd)
        device.generations = kept
        return True
