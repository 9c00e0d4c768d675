"""A device's way into the registry, inside a transaction of the caller's.

the very same record again                 known, also after the device has replaced its keys; nothing changes
a public key that is there                 refused: a copied image, or a dead random source
a name that is there                       refused
a serial number that a station brings      refused while another device with it is not revoked: a station adds
                                           identities, and takes none away
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from edgeseal.errors import NotAuthorisedError, RefusedError
from edgeseal.suite import PublicKey
from edgeseal_host.fleet.schema import device, generation, station

if TYPE_CHECKING:
    from edgeseal.enrolment import Record
    from edgeseal_host.fleet.vault import Vault


def digest(record: Record) -> bytes:
    """48 bytes that name a record: its encoding is deterministic."""
    return hashlib.sha384(record.to_bytes()).digest()


def known(connection: sa.Connection, record: Record) -> bool:
    """Whether exactly this record has been taken before."""
    found = connection.execute(sa.select(device.c.record).where(device.c.name == record.device)).scalar()
    return found is not None and hmac.compare_digest(found, digest(record))


def enrol(
    connection: sa.Connection, vault: Vault, record: Record, psk: bytes, *, station_id: str | None, now: int
) -> bool:
    """Add a device; False if exactly this one is there already. `station_id` of who signed the record, if anybody did.

    Raises RefusedError for what is taken, NotAuthorisedError for a station that is not trusted.
    """
    if station_id is not None:
        _check_station(connection, station_id, record)
    if known(connection, record):
        return False
    key = PublicKey(record.suite, record.public)
    if _same_device(connection, vault, record, key, psk):
        return False
    if station_id is not None:
        _check_serial(connection, record)
    connection.execute(
        sa.insert(device).values(
            name=record.device,
            serial=record.serial,
            hardware=record.hardware,
            group_name=record.group,
            tag=b"",
            enrolled_at=now,
            station=station_id,
            record=digest(record),
        )
    )
    connection.execute(sa.insert(generation), generation_values(vault, record.device, key, psk, pending=False))
    return True


def _same_device(connection: sa.Connection, vault: Vault, record: Record, key: PublicKey, psk: bytes) -> bool:
    """Whether name, key and PSK are those of one device: its record was sealed anew, or came before digests were kept.

    Raises RefusedError if only some of them are.
    """
    query = sa.select(generation.c.device, generation.c.psk).where(generation.c.public == key.raw)
    found = connection.execute(query).first()
    holder = found.device if found else None
    taken = connection.execute(sa.select(device.c.name).where(device.c.name == record.device)).scalar()
    # Another PSK means another grant: to call that the same device would hand out a grant that opens nothing.
    same_psk = found and hmac.compare_digest(vault.open(b"psk", key.kid, found.psk), psk)
    if same_psk and holder == record.device and taken is not None:
        return True
    if holder is not None:
        raise RefusedError(
            f"the public key of {record.device} is already enrolled as {holder}",
            hint="two devices with one key mean a copied image or a broken random generator: make a new key",
        )
    if taken is not None:
        raise RefusedError(
            f"device name {record.device} is taken by another key", hint="choose another name for this device"
        )
    return False


def _check_station(connection: sa.Connection, station_id: str, record: Record) -> None:
    """Look again inside the transaction: it may have been distrusted since its signature was checked."""
    query = sa.select(station.c.group_names).where(station.c.id == station_id, station.c.distrusted_at.is_(None))
    groups = connection.execute(query).scalar()
    if groups is None:
        raise NotAuthorisedError(f"station {station_id} is not trusted", hint="edgeseal fleet stations says why")
    if groups and record.group not in groups.split("\n"):
        raise RefusedError(
            f"station {station_id} is trusted for {groups.replace(chr(10), ', ')}, not for group {record.group[:80]!r}",
            hint="change the batch's group, or: edgeseal fleet trust-station --again with every --group it may use",
        )


def _check_serial(connection: sa.Connection, record: Record) -> None:
    query = sa.select(device.c.name).where(device.c.serial == record.serial, sa.not_(device.c.revoked))
    if (other := connection.execute(query).scalar()) is not None:
        raise RefusedError(
            f"serial number {record.serial[:80]} is device {other}",
            hint=f"was it provisioned again? Then: edgeseal device revoke {other}, and send this record again",
        )


def generation_values(vault: Vault, name: str, key: PublicKey, psk: bytes, *, pending: bool) -> dict[str, Any]:
    """Return a row of a device's keys."""
    return {
        "kid": key.kid,
        "device": name,
        "suite": key.suite.number,
        "public": key.raw,
        "psk": vault.seal(b"psk", key.kid, psk),
        "pending": pending,
    }
