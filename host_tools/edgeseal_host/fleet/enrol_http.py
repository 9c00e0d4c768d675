"""POST /api/v1/devices: a device joins by a record that a station has signed, or that an operator made by hand.

docs/spec/provisioning.md §10 says who may bring which.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from edgeseal.enrolment import Record
from edgeseal.errors import NotAuthorisedError
from edgeseal_host.fleet import bodies, imports, operations
from edgeseal_host.fleet.logs import event
from edgeseal_host.fleet.stations import short
from edgeseal_host.fleet.wire import MAX_SMALL_JSON

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from edgeseal_host.fleet.service import Service

logger = logging.getLogger("edgeseal.fleet")


class Enrolment:
    """The route. `authorise` returns the id of a request's token if it is good for a scope."""

    def __init__(self, service: Service, authorise: Callable[[Request, str], Awaitable[str]]) -> None:
        """Serve one fleet."""
        self._service = service
        self._fleet = service.fleet
        self._authorise = authorise

    async def post(self, request: Request) -> Response:
        """Register a device."""
        token = await self._authorise(request, "enrol")
        body = bodies.parse(await bodies.read(request, MAX_SMALL_JSON), bodies.Enrol)
        now, signed = self._service.now(), body.signed()
        if signed is None:
            await self._authorise_unsigned(request)
            record = Record.from_bytes(bodies.unbase64(body.record, "record"))
            result = await self._service.in_thread(operations.enrol, self._fleet, record, now=now)
        else:
            record, result = await self._service.in_thread(imports.take, self._fleet, signed, now=now)
        station = None if signed is None else short(signed.pin)
        event(logger, "device enrolled", token=token, device=record.device, group=record.group, station=station)
        return JSONResponse(result, 201, {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    async def _authorise_unsigned(self, request: Request) -> None:
        """Let only an admin bring a record by hand once stations are in use: a stolen token alone adds no device."""
        if not await self._service.in_thread(self._fleet.stations.in_use):
            return
        try:
            await self._authorise(request, "admin")
        except NotAuthorisedError:
            raise NotAuthorisedError(
                "this fleet takes records that a trusted station has signed; this one is not",
                hint="send it with edgeseal station upload, or by hand with an admin token",
            ) from None
