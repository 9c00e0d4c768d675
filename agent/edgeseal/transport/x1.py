"""POST /x1: carries one X1 message to the fleet server and brings one answer (docs/spec/session.md §12).

Nothing here is believed: every answer is a hint until the session opens it. Limits come from the session: 60 seconds
for an exchange, 16 KiB for a message, no redirects, no caching, no retries (a new try is a new message).
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from edgeseal.errors import TemporaryError, UsageError
from edgeseal.watch import Watch

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

MAX_MESSAGE: Final = 16_384
DEADLINE: Final = 60.0  # seconds; session.md §8: a pending request is dropped after that
CONNECT_TIMEOUT: Final = 10.0
CONTENT_TYPE: Final = "application/octet-stream"
_OK: Final = 200
_PIECE: Final = 4096


class FleetExchange:
    """Callable `m1 -> m2` for edgeseal.session.device, over HTTP or HTTPS."""

    def __init__(self, fleet_url: str, *, deadline: float = DEADLINE, ca_file: str | None = None) -> None:
        """`fleet_url` is the fleet server's base address.

        Raises UsageError if it is not http(s).
        """
        parts = urlsplit(fleet_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise UsageError(
                f"{parts.scheme}://{parts.hostname or ''} is not the address of a fleet server",
                hint="expected http(s)://host[:port]",
            )
        self._url = fleet_url.rstrip("/") + "/x1"
        self._deadline = deadline
        self._watch = Watch()
        self._pools = urllib3.PoolManager(num_pools=1, maxsize=1, ca_certs=ca_file, retries=False)
        self._pools.pool_classes_by_scheme = self._watch.pool_classes()
        self.requests = 0
        self.received = 0

    def __call__(self, m1: bytes) -> bytes:
        """Send one message and return what came back, at most 16 KiB of it.

        Raises TemporaryError for anything but a complete 200 answer in time.
        """
        self.requests += 1
        ends = time.monotonic() + self._deadline
        try:
            with self._watch.until(ends), contextlib.closing(self._post(m1)) as response:
                answer = _read(response)
        except (HTTPError, OSError, ValueError) as e:
            raise self._failure(e) from e
        if self._watch.over:
            raise TemporaryError(f"the fleet server did not answer within {self._deadline:.0f} s")
        self.received += len(answer)
        return answer

    def _post(self, m1: bytes) -> BaseHTTPResponse:
        return self._pools.request(
            "POST",
            self._url,
            body=m1,
            headers={"Content-Type": CONTENT_TYPE, "Accept-Encoding": "identity", "User-Agent": "edgeseal"},
            preload_content=False,
            decode_content=False,
            redirect=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, self._deadline), read=self._deadline),
        )

    def _failure(self, error: Exception) -> TemporaryError:
        if self._watch.over:
            return TemporaryError(f"the fleet server did not answer within {self._deadline:.0f} s")
        reason = getattr(error, "reason", None) or error
        return TemporaryError(
            f"no exchange with the fleet server at {self._url}: {type(reason).__name__}",
            hint="the network or the fleet server is down; the installed model keeps being served",
        )


def _read(response: BaseHTTPResponse) -> bytes:
    if response.status != _OK:
        raise TemporaryError(f"the fleet server answered HTTP status {response.status} where 200 was expected")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != CONTENT_TYPE or response.headers.get("Content-Encoding", "identity") != "identity":
        raise TemporaryError(
            f"the answer is {kind[:80] or 'untyped'}, not {CONTENT_TYPE}",
            hint="a captive portal or another server answers at the fleet server's address",
        )
    answer = bytearray()
    while piece := response.read1(_PIECE):
        answer += piece
        if len(answer) > MAX_MESSAGE:
            raise TemporaryError(f"the fleet server's answer is longer than {MAX_MESSAGE} bytes")
    return bytes(answer)
