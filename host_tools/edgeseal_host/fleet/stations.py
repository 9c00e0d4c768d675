"""The manufacturing stations whose enrolment records this fleet takes: their public keys, in the registry.

Trusting a station means: whatever device it signs for becomes a member of this fleet. From the first one on, a token
that may only enrol brings signed records and no others. A station that was distrusted stays listed, so that it remains
known whose records were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from edgeseal.errors import FormatError, NotAuthorisedError, RefusedError, UsageError
from edgeseal.provisioning import pin
from edgeseal_host.fleet.schema import device, station

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeseal_host.fleet.registry import SqlRegistry

ID_LENGTH: Final = 16
PUBLIC_LENGTH: Final = 1952  # FIPS 204, table 2


@dataclass(frozen=True, slots=True)
class TrustedStation:
    """A station; `public` is FIPS 204's encoding of its ML-DSA-65 key."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        """Raise FormatError for what cannot be such a key."""
        if len(self.public) != PUBLIC_LENGTH:
            raise FormatError(f"a station's key has {PUBLIC_LENGTH} bytes; this one has {len(self.public)}")

    @property
    def pin(self) -> bytes:
        """48 bytes that its records and its devices name it by."""
        return pin(self.public)

    @property
    def id(self) -> str:
        """What a person types: the first 16 bytes of the pin."""
        return short(self.pin)


class Stations:
    """All of a fleet."""

    def __init__(self, registry: SqlRegistry) -> None:
        """Keep them in the registry's database."""
        self._registry = registry

    def trust(self, found: TrustedStation, *, groups: Sequence[str] = (), now: int, again: bool = False) -> bool:
        """Add a station whose devices may join these groups (none named: any); False if that is so already.

        `again` for one that was distrusted, or trusted for other groups: else RefusedError. UsageError for a group that
        is none.
        """
        values = {"group_names": _joined(groups), "trusted_at": now, "distrusted_at": None, "reason": None}
        with self._registry.durably() as connection:
            row = connection.execute(sa.select(station).where(station.c.id == found.id)).first()
            if row is None:
                values |= {"id": found.id, "name": found.name, "public": found.public}
                connection.execute(sa.insert(station).values(**values))
                return True
            if row.distrusted_at is None and row.group_names == values["group_names"]:
                return False
            if not again:
                raise RefusedError(f"station {found.id} {_so_far(row)}", hint="is that to be changed? Then: --again")
            connection.execute(sa.update(station).where(station.c.id == found.id).values(**values))
            return True

    def distrust(self, station_id: str, reason: str, *, now: int) -> int:
        """Refuse a station's records from now on; returns how many devices it has brought, which stay.

        Raises UsageError if no station of that id is trusted.
        """
        with self._registry.durably() as connection:
            where = station.c.id == station_id, station.c.distrusted_at.is_(None)
            done = connection.execute(sa.update(station).where(*where).values(distrusted_at=now, reason=reason))
            if done.rowcount != 1:
                raise UsageError(
                    f"no station {station_id[:64]!r} is trusted", hint="edgeseal fleet stations lists them"
                )
            count = sa.select(sa.func.count()).select_from(device).where(device.c.station == station_id)
            return int(connection.execute(count).scalar_one())

    def listing(self) -> list[dict[str, Any]]:
        """Return id, name, times in Unix seconds, reason and number of devices of every station, oldest first."""
        devices = sa.select(sa.func.count()).where(device.c.station == station.c.id).scalar_subquery()
        columns = (station.c.id, station.c.name, station.c.trusted_at, station.c.distrusted_at, station.c.reason)
        query = sa.select(*columns, station.c.group_names, devices.label("devices"))
        with self._registry.read() as connection:
            rows = connection.execute(query.order_by(station.c.trusted_at, station.c.id)).mappings().all()
        return [
            {**{k: v for k, v in r.items() if k != "group_names"}, "groups": r["group_names"].splitlines()}
            for r in rows
        ]

    def in_use(self) -> bool:
        """Whether a station was ever trusted: then a record needs one's signature, or an admin."""
        with self._registry.read() as connection:
            return connection.execute(sa.select(station.c.id).limit(1)).first() is not None

    def find(self, station_pin: bytes) -> TrustedStation:
        """Return the station with this pin.

        Raises NotAuthorisedError if it is not trusted.
        """
        with self._registry.read() as connection:
            row = connection.execute(sa.select(station).where(station.c.id == short(station_pin))).first()
        if row is None or pin(row.public) != station_pin:
            raise NotAuthorisedError(
                f"station {short(station_pin)} is not one this fleet trusts",
                hint="compare the id with the station's (edgeseal station status), then: edgeseal fleet trust-station",
            )
        if row.distrusted_at is not None:
            raise NotAuthorisedError(
                f"station {row.id} {_so_far(row)}", hint="devices it provisions join no more; look at the station"
            )
        return TrustedStation(row.name, row.public)


def short(station_pin: bytes) -> str:
    """Return a station's id."""
    return station_pin[:ID_LENGTH].hex()


def _joined(groups: Sequence[str]) -> str:
    for group in groups:
        if not group or not group.isprintable():
            raise UsageError(f"{group[:80]!r} is no group's name", hint="as in the batch file: group = ...")
    return "\n".join(sorted(set(groups)))


def _so_far(row: Any) -> str:  # noqa: ANN401 - a row of `station`
    if row.distrusted_at is not None:
        day = f"{datetime.fromtimestamp(row.distrusted_at, UTC):%Y-%m-%d}"
        return f"({row.name}) is distrusted since {day}: {row.reason}"
    return f"({row.name}) is trusted for {', '.join(row.group_names.splitlines()) or 'any group'}"
