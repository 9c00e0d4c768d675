"""What operators do with devices, assignments and tickets, and how the server says how it is. Blocking functions."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from tuf.api.metadata import Timestamp

from edgeseal.checkin import Report
from edgeseal.contentkey import seal_ticket
from edgeseal.errors import EdgesealError, NoSpaceError, NotAuthorisedError, RefusedError, TemporaryError, UsageError
from edgeseal.suite import PublicKey
from edgeseal_host.fleet import checkin
from edgeseal_host.fleet.registry import unknown_device
from edgeseal_host.fleet.schema import assignment, device, generation, release
from edgeseal_host.repository import metadata

if TYPE_CHECKING:
    from edgeseal.enrolment import Record
    from edgeseal_host.fleet import bodies
    from edgeseal_host.fleet.data import Fleet

_LISTED = (
    device.c.name,
    device.c.serial,
    device.c.hardware,
    device.c.group_name.label("group"),
    device.c.revoked,
    device.c.revoked_reason,
    device.c.alarms,
    device.c.enrolled_at,
    device.c.seen_at,
    device.c.station,
)


def health(fleet: Fleet, *, now: int) -> tuple[bool, dict[str, Any]]:
    """Whether the database answers and the timestamp is not running out, with the reason."""
    try:
        published = fleet.publisher.published()
    except (sa.exc.SQLAlchemyError, EdgesealError) as e:
        return False, {"status": "failing", "reason": f"database: {type(e).__name__}"}
    if published is None or published.timestamp is None:
        return True, {"status": "ok", "published": False}
    left = metadata.read(published.timestamp, Timestamp, what="timestamp.json").signed.expires.timestamp() - now
    if left <= 0:
        return False, {"status": "failing", "reason": "timestamp.json has expired: devices install nothing new"}
    return True, {"status": "ok", "published": True, "timestamp_seconds_left": int(left)}


def enrol(fleet: Fleet, record: Record, *, now: int, station: str | None = None) -> dict[str, Any]:
    """Register a device; `station` is the id of who signed the record, checked by the caller."""
    new = False
    if not fleet.registry.knows(record):  # else its enrolment key may be gone, and that is no reason to refuse it
        psk = record.psk(fleet.data.ring("enrol").ring())
        new = fleet.registry.enrol(record, psk, now=now, station=station)
    return {"device": record.device, "group": record.group, "suite": record.suite, "new": new}


def devices(fleet: Fleet) -> list[dict[str, Any]]:
    """List all devices by name."""
    with fleet.registry.read() as connection:
        return [dict(row) for row in connection.execute(sa.select(*_LISTED).order_by(device.c.name)).mappings()]


def device_details(fleet: Fleet, name: str, *, now: int) -> dict[str, Any]:
    """Return one device with its last report, its key generations and its orders."""
    with fleet.registry.read() as connection:
        row = connection.execute(sa.select(*_LISTED, device.c.report).where(device.c.name == name)).mappings().first()
        if row is None:
            raise unknown_device(name)
        query = sa.select(generation.c.kid, generation.c.suite, generation.c.pending).where(generation.c.device == name)
        keys = [{"kid": k.kid.hex(), "suite": k.suite, "pending": k.pending} for k in connection.execute(query)]
        found = checkin.orders(fleet.registry.run, name, now=now)
    orders = [{"model": o.assignment.model, "release": o.assignment.release, "blocked": o.blocked} for o in found]
    return {**row, "report": _report(row["report"]), "generations": keys, "orders": orders}


def assignments(fleet: Fleet) -> list[dict[str, Any]]:
    """List all assignments."""
    query = sa.select(assignment).order_by(assignment.c.model, assignment.c.kind, assignment.c.target)
    with fleet.registry.read() as connection:
        rows = connection.execute(query).all()
    return [
        {"model": r.model, "release": r.release, r.kind: r.target, "not_after": r.not_after, "made_at": r.made_at}
        for r in rows
    ]


def assign(fleet: Fleet, body: bodies.Assign, *, now: int) -> dict[str, Any]:
    """Say which release a device or group shall run.

    Raises RefusedError for a release that nobody could be given, NotAuthorisedError for an unknown device.
    """
    kind, target = _target(body)
    with fleet.registry.durably() as connection:
        _check_assignable(connection, body.model, body.release)
        if kind == "device":
            _check_device(connection, target)
        where = assignment.c.kind == kind, assignment.c.target == target, assignment.c.model == body.model
        connection.execute(sa.delete(assignment).where(*where))
        connection.execute(
            sa.insert(assignment).values(
                kind=kind, target=target, model=body.model, release=body.release, not_after=body.not_after, made_at=now
            )
        )
    return {"model": body.model, "release": body.release, kind: target, "not_after": body.not_after}


def withdraw(fleet: Fleet, body: bodies.Withdraw) -> dict[str, Any]:
    """Take an assignment back.

    Raises UsageError if there is none.
    """
    kind, target = _target(body)
    where = assignment.c.kind == kind, assignment.c.target == target, assignment.c.model == body.model
    with fleet.registry.durably() as connection:
        if connection.execute(sa.delete(assignment).where(*where)).rowcount != 1:
            raise UsageError(f"{kind} {target} has no assignment of model {body.model}")
    return {"model": body.model, kind: target}


def ticket(fleet: Fleet, body: bodies.Ticket, *, now: int) -> bytes:
    """Seal a content key to one device.

    Raises NotAuthorisedError for a revoked or unknown device or a release it cannot have.
    """
    row = fleet.registry.current_generation(body.device)
    with fleet.registry.read() as connection:
        ck = checkin.content_key(connection, fleet.vault, name=body.device, model=body.model, number=body.release)
    return seal_ticket(
        PublicKey(row.suite, row.public),
        row.psk,
        model=body.model,
        release=body.release,
        ck=ck,
        not_after=now + checkin.KEY_SECONDS,
    )


def disk_error(error: OSError) -> EdgesealError:
    """Say what the disk did, without the server's paths."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpaceError("the fleet server's disk is full", hint="free some space on the fleet server")
    return TemporaryError("the fleet server could not read or write its disk", hint="its log says where")


def database_error(error: Exception) -> EdgesealError:
    """Say what the database did."""
    if "disk is full" in str(getattr(error, "orig", error)):
        return NoSpaceError("the fleet server's disk is full", hint="free some space on the fleet server")
    return TemporaryError("the registry did not answer", hint="try again; is its disk there, and not read-only?")


def _check_assignable(connection: sa.Connection, model: str, number: int) -> None:
    query = sa.select(release.c.listed, release.c.floor).where(release.c.model == model, release.c.release == number)
    row = connection.execute(query).one_or_none()
    if row is None or not row.listed:
        raise RefusedError(
            f"{model[:80]} release {number} is not listed by published metadata",
            hint="edgeseal bundle publish comes first",
        )
    if number < row.floor:
        raise RefusedError(f"{model} release {number} is below the lowest release allowed, {row.floor}")


def _check_device(connection: sa.Connection, name: str) -> None:
    revoked = connection.execute(sa.select(device.c.revoked).where(device.c.name == name)).scalar()
    if revoked is None:
        raise unknown_device(name)
    if revoked:
        raise NotAuthorisedError(f"device {name} is revoked")


def _target(body: bodies.Assign | bodies.Withdraw) -> tuple[str, str]:
    if body.device is not None and body.group is None:
        return "device", body.device
    if body.group is not None and body.device is None:
        return "group", body.group
    raise UsageError("name either a device or a group")


def _report(data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    r = Report.from_bytes(data)
    return {
        "agent": r.agent,
        "hardware": r.hardware,
        "runtimes": r.runtimes,
        "models": {name: {"release": s.release, "state": s.state, "gate": s.gate} for name, s in r.models.items()},
        "failed": [{"model": f.model, "release": f.release, "reason": f.reason} for f in r.failed],
        "metadata": r.metadata,
        "entropy": r.entropy,
        "free_disk": r.free_disk,
        "free_ram": r.free_ram,
        "problem": r.problem,
        "sources": [msgspec.structs.asdict(source) for source in r.sources],
    }
