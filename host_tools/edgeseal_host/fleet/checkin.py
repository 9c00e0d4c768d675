"""What a device is told in an X1 exchange: what it shall run, and the content keys it is entitled to.

A device gets a key only for a release that is assigned to it (or to its group), still listed by signed metadata, at or
above its model's floor, and made for its hardware. Revoked devices never come this far (edgeseal.session.server).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from edgeseal.checkin import FORMAT, MAX_MODELS, Assignment, Grant, Orders, Report
from edgeseal.errors import IncompatibleError, NotAuthorisedError, RefusedError
from edgeseal.session.messages import Status
from edgeseal_host.fleet.prepared import Prepared
from edgeseal_host.fleet.schema import assignment, device, release

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeseal.session.server import Row
    from edgeseal_host.fleet.prepared import Run
    from edgeseal_host.fleet.registry import SqlTransaction
    from edgeseal_host.fleet.vault import Vault

POLL_SECONDS: Final = 300
REPORT_SECONDS: Final = 3600
# How long a device may keep a key without hearing from its fleet. Long: machines that lost the network go on working.
KEY_SECONDS: Final = 5 * 365 * 86_400

_ORDERS: Final = Prepared(
    sa.select(
        assignment.c.kind,
        assignment.c.model,
        assignment.c.release,
        assignment.c.not_after,
        device.c.hardware.label("device_hardware"),
        release.c.path,
        release.c.sha256,
        release.c.length,
        release.c.hardware,
        release.c.floor,
        release.c.listed,
        release.c.ck,
    )
    .select_from(device)
    .join(
        assignment,
        sa.or_(
            sa.and_(assignment.c.kind == "device", assignment.c.target == device.c.name),
            sa.and_(assignment.c.kind == "group", assignment.c.target == device.c.group_name),
        ),
    )
    .outerjoin(release, sa.and_(release.c.model == assignment.c.model, release.c.release == assignment.c.release))
    .where(device.c.name == sa.bindparam("d"))
    .order_by(assignment.c.model, assignment.c.kind)  # "device" before "group": it wins
)
_REPORTED: Final = Prepared(
    sa.update(device)
    .where(device.c.name == sa.bindparam("d"))
    .values(report=sa.bindparam("r"), seen_at=sa.bindparam("now"))
)


class _Assigned(NamedTuple):
    """One row of `_ORDERS`; what belongs to the release is None if it was never published."""

    kind: str
    model: str
    release: int
    not_after: int | None
    device_hardware: str
    path: str | None
    sha256: bytes | None
    length: int | None
    hardware: str | None
    floor: int | None
    listed: bool | None
    ck: bytes | None


@dataclass(frozen=True, slots=True)
class Order:
    """One assignment of one device; `blocked` says why it cannot have it, empty if it can."""

    assignment: Assignment
    sealed_ck: bytes | None
    blocked: str


class CheckIn:
    """The X1 handler."""

    def __init__(self, *, clock: Callable[[], int]) -> None:
        """`clock` gives Unix seconds."""
        self._clock = clock

    def __call__(self, tx: SqlTransaction, row: Row, body: bytes) -> tuple[Status, bytes]:
        """Keep the report and answer orders; DENIED for a body that is no report."""
        try:
            Report.from_bytes(body)
        except (RefusedError, IncompatibleError):
            tx.outcome = "denied"
            return Status.DENIED, b""
        now = self._clock()
        tx.run(_REPORTED, {"d": row.device, "r": body, "now": now})
        ready = [o for o in orders(tx.run, row.device, now=now) if not o.blocked][:MAX_MODELS]
        grants = [grant for o in ready if (grant := _grant(tx.vault, o)) is not None]
        answer = Orders(FORMAT, [o.assignment for o in ready], grants, POLL_SECONDS, REPORT_SECONDS)
        return Status.OK, answer.to_bytes()


def orders(run: Run, name: str, *, now: int) -> list[Order]:
    """Return what a device is assigned, one per model, with the reason for each it may not have."""
    found: dict[str, Order] = {}
    for values in run(_ORDERS, {"d": name}):
        row = _Assigned(*values)
        if row.model not in found:
            not_after = now + KEY_SECONDS if row.not_after is None else row.not_after
            path, sha256, length = row.path or "", row.sha256 or bytes(32), row.length or 0
            order = Assignment(row.model, path, sha256, length, row.release, not_after)
            found[row.model] = Order(order, row.ck, _blocked(row, not_after, now))
    return list(found.values())


def content_key(connection: sa.Connection, vault: Vault, *, name: str, model: str, number: int) -> bytes:
    """Return the key of a release that a device may have, whether or not it is assigned: for a ticket.

    Raises NotAuthorisedError with the reason.
    """
    query = sa.select(release).where(release.c.model == model, release.c.release == number)
    row = connection.execute(query).one_or_none()
    hardware = connection.execute(sa.select(device.c.hardware).where(device.c.name == name)).scalar()
    why = "it was never published" if row is None else _unfit(row, hardware or "")
    if row is None or why:
        raise NotAuthorisedError(f"{name} cannot have {model} release {number}: {why}")
    return _open(vault, row.path, row.ck)


def _blocked(row: _Assigned, not_after: int, now: int) -> str:
    if row.path is None:
        return "it was never published"
    if not_after <= now:
        return "the assignment has ended"
    return _unfit(row, row.device_hardware)


def _unfit(row: Any, hardware: str) -> str:  # noqa: ANN401 - a row of `release` or of `_ORDERS`
    """Say why a published release is not for a device of that hardware; empty if it is."""
    if not row.listed:
        return "it was withdrawn: signed metadata lists it no more"
    if row.release < row.floor:
        return f"the lowest release allowed is {row.floor}"
    if row.hardware and hardware not in row.hardware.split("\n"):
        made_for = ", ".join(row.hardware.split("\n"))
        return f"it is made for {made_for}; the device is {hardware or 'of unknown hardware'}"
    if row.ck is None:
        return "its content key was not sent to this server"
    return ""


def _grant(vault: Vault, order: Order) -> Grant | None:
    a = order.assignment
    if order.sealed_ck is None:
        return None
    return Grant(a.model, a.release, _open(vault, a.path, order.sealed_ck), a.not_after)


def _open(vault: Vault, path: str, sealed: bytes) -> bytes:
    return vault.open(b"content key", path.encode(), sealed)
